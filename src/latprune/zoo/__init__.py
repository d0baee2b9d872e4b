"""Reference models and data loaders for the demo, the tests and the benchmarks."""

from latprune.zoo.batches import cifar10_test, cifar10_train, digits_test, digits_train
from latprune.zoo.cifar_resnet import CifarBlock, CifarResNet, PadShortcut, ResNet18Cifar, cifar_resnet, cifar_resnet18
from latprune.zoo.concat import C2f, DenseNetwork, DetectionNeck, UNet, dense_network, detection_neck, unet
from latprune.zoo.detection import SingleShotDetector, StreamingDetector, single_shot_detector, streaming_detector
from latprune.zoo.digits import digits, digits_resnet
from latprune.zoo.image_folder import ImageFolder
from latprune.zoo.imagenet import VGG, BottleneckResNet, MobileNetV2, mobilenet_v2, resnet50, vgg16
from latprune.zoo.images import cifar10, image_classes, load_image_set
from latprune.zoo.language import RecurrentLanguageModel, recurrent_language_model
from latprune.zoo.loading import (
    CIFAR10_NORMALISATION,
    DIGITS_NORMALISATION,
    IMAGENET_NORMALISATION,
    Augmentation,
    ImageLoader,
    Normalisation,
    augment,
)
from latprune.zoo.reading import (
    DatasetImages,
    ImageSource,
    LabelledFolder,
    RandomResizedCrop,
    StreamedImages,
    huggingface_test,
    huggingface_train,
    image_folders_test,
    image_folders_train,
    load_arrays,
    load_cifar10_binary,
    npz_test,
    npz_train,
)
from latprune.zoo.vit import VisionTransformer, cifar_vit

__all__ = [
    "CIFAR10_NORMALISATION",
    "DIGITS_NORMALISATION",
    "IMAGENET_NORMALISATION",
    "VGG",
    "Augmentation",
    "BottleneckResNet",
    "C2f",
    "CifarBlock",
    "CifarResNet",
    "DatasetImages",
    "DenseNetwork",
    "DetectionNeck",
    "ImageFolder",
    "ImageLoader",
    "ImageSource",
    "LabelledFolder",
    "MobileNetV2",
    "Normalisation",
    "PadShortcut",
    "RandomResizedCrop",
    "RecurrentLanguageModel",
    "ResNet18Cifar",
    "SingleShotDetector",
    "StreamedImages",
    "StreamingDetector",
    "UNet",
    "VisionTransformer",
    "augment",
    "cifar10",
    "cifar10_test",
    "cifar10_train",
    "cifar_resnet",
    "cifar_resnet18",
    "cifar_vit",
    "dense_network",
    "detection_neck",
    "digits",
    "digits_resnet",
    "digits_test",
    "digits_train",
    "huggingface_test",
    "huggingface_train",
    "image_classes",
    "image_folders_test",
    "image_folders_train",
    "load_arrays",
    "load_cifar10_binary",
    "load_image_set",
    "mobilenet_v2",
    "npz_test",
    "npz_train",
    "recurrent_language_model",
    "resnet50",
    "single_shot_detector",
    "streaming_detector",
    "unet",
    "vgg16",
]
