"""The pruner: proposes, masks and cuts networks under a budget, in the steps of a schedule, and runs the whole way to a result."""
