"""The networks of ``benchmarks/zoo.py`` with their inputs: of public packages, and our own."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "tests")]

import zoo_toys  # noqa: E402
from support.programs import NETWORKS  # noqa: E402
from support.vision import torchvision  # noqa: E402

__all__ = ["create", "names", "preload"]

Built = tuple[nn.Module, Any]
"""The network and its example inputs: a tensor, a tuple, or a dict of keyword inputs."""

TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 mobilenet_v2 "
    "mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50 resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 squeezenet1_0 "
    "swin_t swin_v2_t vgg11 vgg16_bn vit_b_32"
).split()
SIDES = {"alexnet": 224, "inception_v3": 96, "maxvit_t": 224, "vgg11": 224, "vgg16_bn": 224, "vit_b_32": 224}
"""Image sides that the network needs; 64 for the others."""
SEGMENTATION = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
DETECTION = {
    "ssd300_vgg16": 300,
    "ssdlite320_mobilenet_v3_large": 320,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 160,
    "retinanet_resnet50_fpn": 128,
    "fcos_resnet50_fpn": 128,
}


def _torchvision(name: str) -> Built:
    models = torchvision().models
    options: dict[str, Any] = {"weights": None}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    side = SIDES.get(name, 64)
    return models.get_model(name, **options), torch.randn(1 if side > 100 else 2, 3, side, side)


def _segmentation(name: str) -> Built:
    network = torchvision().models.get_model(name, weights=None, weights_backbone=None, num_classes=8)
    return network, torch.randn(1, 3, 64, 64)


def _detection(name: str) -> Built:
    side = DETECTION[name]
    options = {} if name.startswith("ssd") else {"min_size": side, "max_size": side}
    network = torchvision().models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
    # Noise at every pixel averages out, and equal scores would be sorted by rounding errors: the image varies from place to place.
    coarse = torch.randn(1, 3, 12, 12)
    return network, ([torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")[0]],)


def timm_families() -> dict[str, tuple[str, int, dict[str, Any]]]:
    """One small variant of each module of timm that has models: its name, image side and options (fewer layers where it is large)."""
    listed = Path(__file__).with_name("zoo_timm.txt").read_text(encoding="utf-8").splitlines()
    fields = [line.split() for line in listed if line and not line.startswith("#")]
    return {f[0]: (f[1], int(f[3]), json.loads(f[4]) if len(f) > 4 else {}) for f in fields}


def _timm(family: str) -> Built:
    torchvision()
    import timm

    name, side, options = timm_families()[family]
    network = timm.create_model(name, pretrained=False, **options)
    return network, torch.randn(1, 3, side, side)


TIMM_VARIANTS = {
    name: 224 if name.endswith(("_224", "_256", "_m1")) else 128
    for name in (
        "resnet26t ecaresnet26t seresnext26t_32x4d regnety_002 regnetz_005 mobilenetv4_conv_small mobilenetv3_large_075 "
        "tf_efficientnet_lite0 efficientnet_es mixnet_s fbnetc_100 lcnet_050 convnextv2_atto mobileone_s0 repvgg_a0 vit_tiny_patch16_224 "
        "mobilevitv2_050 resmlp_12_224 mixer_s32_224 nf_resnet26 cs3darknet_s darknet17 repvit_m0_9 semnasnet_050 ghostnetv2_100 gernet_s "
        "mambaout_femto fastvit_t12"
    ).split()
}
"""Further variants of timm, beside one of each of its modules: name and image side."""


def _timm_variant(name: str) -> Built:
    torchvision()
    import timm

    side = TIMM_VARIANTS[name]
    return timm.create_model(name, pretrained=False), torch.randn(1, 3, side, side)


def _huggingface_vision(config_name: str, model_name: str, side: int = 64, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        torchvision()
        import transformers

        config = getattr(transformers, config_name)(**options)
        return getattr(transformers, model_name)(config), {"pixel_values": torch.randn(1, 3, side, side)}

    return make


def _huggingface_text(config_name: str, model_name: str, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        torchvision()
        import transformers

        config = getattr(transformers, config_name)(**options)
        return getattr(transformers, model_name)(config), {"input_ids": torch.randint(0, 100, (2, 12))}

    return make


def _huggingface(config_name: str, model_name: str, inputs: Callable[[], dict[str, torch.Tensor]], **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        torchvision()
        import transformers

        return getattr(transformers, model_name)(getattr(transformers, config_name)(**options)), inputs()

    return make


def _tokens(length: int = 12, **more: tuple[int, ...]) -> Callable[[], dict[str, torch.Tensor]]:
    """Token ids; further names with a shape of floats, or a length of ids."""

    def make() -> dict[str, torch.Tensor]:
        found = {"input_ids": torch.randint(3, 100, (2, length))} if length else {}
        return found | {name: torch.randint(3, 100, (2, *shape)) if len(shape) == 1 else torch.randn(shape) for name, shape in more.items()}

    return make


_SMALL = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
_TEXT = _SMALL | {"vocab_size": 101, "max_position_embeddings": 64}
_DECODER = _TEXT | {"num_key_value_heads": 2, "pad_token_id": 0}

HUGGINGFACE: dict[str, Callable[[], Built]] = {
    "vit": _huggingface_vision("ViTConfig", "ViTForImageClassification", image_size=64, patch_size=16, **_SMALL),
    "deit": _huggingface_vision("DeiTConfig", "DeiTForImageClassification", image_size=64, patch_size=16, **_SMALL),
    "dinov2": _huggingface_vision(
        "Dinov2Config",
        "Dinov2ForImageClassification",
        56,
        image_size=56,
        patch_size=14,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
    ),
    "swin": _huggingface_vision(
        "SwinConfig",
        "SwinForImageClassification",
        image_size=64,
        patch_size=4,
        embed_dim=24,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=4,
    ),
    "segformer": _huggingface_vision(
        "SegformerConfig", "SegformerForSemanticSegmentation", hidden_sizes=[16, 32, 40, 64], depths=[2, 2, 2, 2], decoder_hidden_size=32
    ),
    "convnext": _huggingface_vision("ConvNextConfig", "ConvNextForImageClassification", hidden_sizes=[16, 32, 48, 64], depths=[2, 2, 3, 2]),
    "resnet": _huggingface_vision(
        "ResNetConfig", "ResNetForImageClassification", embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 2, 2]
    ),
    "bert": _huggingface_text("BertConfig", "BertForSequenceClassification", **_TEXT),
    "gpt2": _huggingface_text(
        "GPT2Config", "GPT2LMHeadModel", vocab_size=101, n_positions=64, n_embd=64, n_layer=4, n_head=4, use_cache=True
    ),
    "llama": _huggingface_text("LlamaConfig", "LlamaForCausalLM", use_cache=True, **_DECODER),
    "qwen2": _huggingface_text("Qwen2Config", "Qwen2ForCausalLM", use_cache=True, **_DECODER),
    "phi3": _huggingface_text("Phi3Config", "Phi3ForCausalLM", use_cache=True, **_DECODER),
}


def _detr() -> Built:
    torchvision()
    import transformers

    backbone = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[2, 2, 2, 2], out_features=["stage4"])
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=10,
    )
    return transformers.DetrForObjectDetection(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


HUGGINGFACE["detr"] = _detr


_D_MODEL = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "vocab_size": 101,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HUGGINGFACE |= {
    "albert": _huggingface("AlbertConfig", "AlbertForSequenceClassification", _tokens(), embedding_size=32, **_TEXT),
    "bart": _huggingface(
        "BartConfig", "BartForConditionalGeneration", _tokens(decoder_input_ids=(8,)), max_position_embeddings=64, **_D_MODEL
    ),
    "beit": _huggingface_vision("BeitConfig", "BeitForImageClassification", image_size=64, patch_size=16, **_SMALL),
    "bloom": _huggingface("BloomConfig", "BloomForCausalLM", _tokens(), vocab_size=101, hidden_size=64, n_layer=3, n_head=4),
    "clip": _huggingface(
        "CLIPConfig",
        "CLIPModel",
        _tokens(pixel_values=(2, 3, 64, 64)),
        text_config=_TEXT | {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0},
        vision_config=_SMALL | {"image_size": 64, "patch_size": 16},
        projection_dim=32,
    ),
    "deberta": _huggingface("DebertaV2Config", "DebertaV2ForSequenceClassification", _tokens(), pooler_hidden_size=64, **_TEXT),
    "distilbert": _huggingface(
        "DistilBertConfig",
        "DistilBertForSequenceClassification",
        _tokens(),
        vocab_size=101,
        dim=64,
        hidden_dim=128,
        n_layers=4,
        n_heads=4,
        max_position_embeddings=64,
    ),
    "electra": _huggingface("ElectraConfig", "ElectraForSequenceClassification", _tokens(), embedding_size=32, **_TEXT),
    "gemma": _huggingface("GemmaConfig", "GemmaForCausalLM", _tokens(), head_dim=16, **_DECODER),
    "gpt_neox": _huggingface("GPTNeoXConfig", "GPTNeoXForCausalLM", _tokens(), **_TEXT),
    "mamba": _huggingface("MambaConfig", "MambaForCausalLM", _tokens(), vocab_size=101, hidden_size=64, state_size=8, num_hidden_layers=3),
    "mistral": _huggingface("MistralConfig", "MistralForCausalLM", _tokens(), **_DECODER),
    "mixtral": _huggingface("MixtralConfig", "MixtralForCausalLM", _tokens(), num_local_experts=4, **_DECODER),
    "mpnet": _huggingface("MPNetConfig", "MPNetForSequenceClassification", _tokens(), **_TEXT),
    "olmo2": _huggingface("Olmo2Config", "Olmo2ForCausalLM", _tokens(), **_DECODER),
    "opt": _huggingface(
        "OPTConfig",
        "OPTForCausalLM",
        _tokens(),
        vocab_size=101,
        hidden_size=64,
        word_embed_proj_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=128,
        max_position_embeddings=64,
    ),
    "pvt": _huggingface_vision(
        "PvtConfig",
        "PvtForImageClassification",
        image_size=64,
        hidden_sizes=[16, 32, 48, 64],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 3, 4],
        mlp_ratios=[2, 2, 2, 2],
    ),
    "roberta": _huggingface("RobertaConfig", "RobertaForSequenceClassification", _tokens(), **_TEXT),
    "starcoder2": _huggingface("Starcoder2Config", "Starcoder2ForCausalLM", _tokens(), **_DECODER),
    "t5": _huggingface(
        "T5Config",
        "T5ForConditionalGeneration",
        _tokens(decoder_input_ids=(8,)),
        vocab_size=101,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=3,
        num_heads=4,
    ),
    "wav2vec2": _huggingface(
        "Wav2Vec2Config",
        "Wav2Vec2ForCTC",
        _tokens(0, input_values=(2, 3200)),
        vocab_size=32,
        conv_dim=(32, 32, 32),
        conv_stride=(5, 4, 4),
        conv_kernel=(10, 8, 4),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        **_SMALL,
    ),
    "whisper": _huggingface(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        _tokens(0, input_features=(2, 16, 64), decoder_input_ids=(8,)),
        num_mel_bins=16,
        max_source_positions=32,
        max_target_positions=32,
        decoder_start_token_id=1,
        **_D_MODEL,
    ),
}


def _own() -> dict[str, Callable[[], Built]]:
    from latprune import zoo

    def image(make: Callable[[], nn.Module], side: int, channels: int = 3) -> Callable[[], Built]:
        return lambda: (make(), torch.randn(2, channels, side, side))

    own = {
        "cifar_resnet56_a": image(lambda: zoo.cifar_resnet(56, "A"), 32),
        "cifar_resnet20_b": image(lambda: zoo.cifar_resnet(20, "B"), 32),
        "cifar_resnet18": image(lambda: zoo.cifar_resnet18(), 32),
        "digits_resnet": image(lambda: zoo.digits_resnet(), 32, 1),
        "resnet50": image(lambda: zoo.resnet50(), 64),
        "vgg16": image(lambda: zoo.vgg16(10, width=16, hidden=64, pooled=2), 64),
        "mobilenet_v2": image(lambda: zoo.mobilenet_v2(), 64),
        "dense_network": image(lambda: zoo.dense_network(), 32),
        "unet": image(lambda: zoo.unet(), 32),
        "detection_neck_c2f": image(lambda: zoo.detection_neck(), 64),
        "ssd512_resnet50": lambda: (zoo.single_shot_detector(), torch.randn(1, 3, 128, 128)),
        "streaming_detector": lambda: (
            zoo.streaming_detector(),
            (torch.randn(1, 2, 3, 64, 64), torch.randn(1, 8, 3), torch.randn(1, 8, 64)),
        ),
        "lstm_language_model": lambda: (zoo.recurrent_language_model(), torch.randint(0, 200, (2, 9))),
    }
    return own | zoo_toys.TOYS


ULTRALYTICS = [f"{version}n{task}" for version in ("yolov8", "yolo11", "yolo26") for task in ("", "-seg", "-pose", "-cls")]
"""Built from the package's own YAML files, where ``ultralytics`` is installed; as its exporter runs them."""


def _ultralytics(name: str) -> Built:
    torchvision()
    from ultralytics import YOLO

    network = YOLO(f"{name}.yaml").model
    network.model[-1].export = True
    for module in network.modules():
        if hasattr(type(module), "forward_split"):
            module.forward = module.forward_split
    return network, torch.rand(1, 3, 64, 64)


SEGMENTATION_MODELS = {
    "unet": ("Unet", "resnet18", {}),
    "unetplusplus": ("UnetPlusPlus", "mobilenet_v2", {}),
    "fpn": ("FPN", "resnet18", {}),
    "pspnet": ("PSPNet", "resnet18", {}),
    "deeplabv3plus": ("DeepLabV3Plus", "mobilenet_v2", {}),
    "linknet": ("Linknet", "resnet18", {}),
    "manet": ("MAnet", "resnet18", {}),
    "segformer": ("Segformer", "resnet18", {}),
}
"""Decoder, encoder and options in ``segmentation_models_pytorch``, where it is installed."""


def _segmentation_model(name: str) -> Built:
    torchvision()
    import segmentation_models_pytorch

    decoder, encoder, options = SEGMENTATION_MODELS[name]
    network = getattr(segmentation_models_pytorch, decoder)(encoder, encoder_weights=None, classes=5, **options)
    return network, torch.randn(1, 3, 64, 64)


def _unet_2d() -> Built:
    from diffusers import UNet2DModel

    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return network, (torch.randn(1, 3, 16, 16), torch.tensor([7]))


def _unet_2d_condition() -> Built:
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return network, (torch.randn(1, 4, 16, 16), torch.tensor([7]), torch.randn(1, 6, 24))


def _autoencoder() -> Built:
    from diffusers import AutoencoderKL

    network = AutoencoderKL(
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    return network, torch.randn(1, 3, 32, 32)


def _diffusion_transformer() -> Built:
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(sample_size=8, num_layers=3, num_attention_heads=4, attention_head_dim=8, norm_num_groups=1)
    return network, {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([7]),
        "class_labels": torch.tensor([3]),
    }


DIFFUSERS: dict[str, Callable[[], Built]] = {
    "unet_2d": _unet_2d,
    "unet_2d_condition": _unet_2d_condition,
    "autoencoder_kl": _autoencoder,
    "dit": _diffusion_transformer,
}
"""Small configurations of Diffusers' networks, where it is installed."""


def _diffusers(name: str) -> Built:
    torchvision()
    return DIFFUSERS[name]()


OPTIONAL = {
    "ultralytics": ("ultralytics", ULTRALYTICS),
    "smp": ("segmentation_models_pytorch", list(SEGMENTATION_MODELS)),
    "diffusers": ("diffusers", list(DIFFUSERS)),
}
"""Families whose packages need not be installed: package and names."""


PROGRAMS = (
    "torchvision:resnet18 torchvision:shufflenet_v2_x0_5 torchvision:swin_t torchvision:swin_v2_t torchvision:vit_b_32 huggingface:bert "
    "huggingface:gpt2 huggingface:llama huggingface:segformer huggingface:swin timm:deit huggingface:albert huggingface:gpt_neox"
).split()
"""Networks that are pruned as captured programs too, as ``program:<name>``; beside them those of ``tests/support/programs.py``."""


def names() -> list[str]:
    """All names, ``family:model``."""
    return [
        *(f"own:{name}" for name in _own()),
        *(f"torchvision:{name}" for name in TORCHVISION),
        *(f"segmentation:{name}" for name in SEGMENTATION),
        *(f"detection:{name}" for name in DETECTION),
        *(f"huggingface:{name}" for name in HUGGINGFACE),
        *(f"timm:{name}" for name in timm_families()),
        *(f"timm-variant:{name}" for name in TIMM_VARIANTS),
        *(f"{family}:{name}" for family, (package, found) in OPTIONAL.items() if importlib.util.find_spec(package) for name in found),
        *(f"program:{name}" for name in (*PROGRAMS, *NETWORKS)),
    ]


def preload(wanted: list[str]) -> None:
    """Import what the named networks need, once, for the processes that are started from this one."""
    families = {name.removeprefix("program:").partition(":")[0] for name in wanted}
    torchvision()
    packages = [("timm", "timm"), ("timm-variant", "timm"), ("huggingface", "transformers")]
    for family, package in (*packages, *((family, package) for family, (package, _) in OPTIONAL.items())):
        if family in families:
            importlib.import_module(package)
    for package in ("latprune.export", "latprune.surgery", "latprune.zoo", "onnx", "onnxruntime"):
        importlib.import_module(package)


def create(name: str) -> Built:
    """Build a network with weights that follow from the seed alone."""
    torch.manual_seed(0)
    name = name.removeprefix("program:")
    if name in NETWORKS:
        return NETWORKS[name]()
    family, _, model = name.partition(":")
    if family == "own":
        return _own()[model]()
    if family == "huggingface":
        return HUGGINGFACE[model]()
    return {
        "torchvision": _torchvision,
        "segmentation": _segmentation,
        "detection": _detection,
        "timm": _timm,
        "timm-variant": _timm_variant,
        "ultralytics": _ultralytics,
        "smp": _segmentation_model,
        "diffusers": _diffusers,
    }[family](model)
