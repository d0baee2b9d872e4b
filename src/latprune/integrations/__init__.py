"""Pruned networks in other libraries' formats and loops, one package a library; each is imported where it is used, and none by the rest."""
