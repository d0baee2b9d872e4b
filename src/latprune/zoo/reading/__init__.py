"""Data in the layouts that people keep it in: image folders, CIFAR-10's binary files, arrays, Hugging Face data sets, Pascal VOC."""

from latprune.zoo.reading.arrays import load_arrays, npz_test, npz_train
from latprune.zoo.reading.cifar_binary import load_cifar10_binary
from latprune.zoo.reading.crops import RandomResizedCrop
from latprune.zoo.reading.huggingface import DatasetImages, huggingface_test, huggingface_train
from latprune.zoo.reading.labelled_folder import LabelledFolder, image_folders_test, image_folders_train
from latprune.zoo.reading.streamed import ImageSource, StreamedImages
from latprune.zoo.reading.voc import VOC_CLASSES, Annotation, VOCFolder, read_annotation

__all__ = [
    "VOC_CLASSES",
    "Annotation",
    "DatasetImages",
    "ImageSource",
    "LabelledFolder",
    "RandomResizedCrop",
    "StreamedImages",
    "VOCFolder",
    "huggingface_test",
    "huggingface_train",
    "image_folders_test",
    "image_folders_train",
    "load_arrays",
    "load_cifar10_binary",
    "npz_test",
    "npz_train",
    "read_annotation",
]
