"""A model as a GGUF file that llama.cpp runs."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from loquela.checkpoint.gguf import ARCHITECTURES, EOT, package, pairs_to_halves
from loquela.checkpoint.rules import to_disk
from loquela.checkpoint.store import Loaded
from loquela.errors import CheckpointError, StorageError, UsageError
from loquela.layers.positions import rotary_frequencies
from loquela.models.base import Network
from loquela.text import gguf_vocab

__all__ = ["write"]

_AS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gpt2": "gpt2"}
"""Our `model_type` → llama.cpp's architecture."""
_ACTIVATIONS = {"hidden_act": ("silu", "swish"), "activation_function": ("gelu_new", "gelu_pytorch_tanh")}
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}


def write(model: Loaded, target: Path, check: Callable[[Path], None], dtype: str) -> None:
    """Write `model` to the new file `target`, matrices as `dtype` (a name in `gguf.DTYPES`), vectors as float32.

    Rows that do not divide into q8_0's blocks of 32 become float16. `check` sees the finished file before it takes its
    place; when it raises, or a write fails (`StorageError`), nothing is left. Raises `UsageError` for a model that
    llama.cpp's architecture cannot say.
    """
    gguf = package()
    architecture = _architecture(model.network)
    metadata = _metadata(model, architecture)
    tensors = dict(_tensors(model.network, architecture))
    with _new_file(target) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        writer.add_name(model.directory.name or architecture)
        writer.add_file_type(_FILE_TYPES[dtype])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in metadata.items():
            _adder(writer, value)(key, value)
        kinds = {name: _kind(gguf, name, tensor, dtype) for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            shape = gguf.quant_shape_to_byte_shape(tensor.shape, kinds[name])
            writer.add_tensor_info(name, shape, np.dtype(np.uint8), int(np.prod(shape)), raw_dtype=kinds[name])
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():  # one after another, so that no second model is in memory
                writer.write_tensor_data(gguf.quants.quantize(tensor.float().numpy(), kinds[name]))
        finally:
            writer.close()
        check(temporary)


def _architecture(network: Network) -> str:
    architecture = _AS.get(network.config.model_type)
    if architecture is None or network.headless:
        what = "a model without its head" if architecture else f"a {network.config.model_type}"
        raise UsageError(f"GGUF is written for {', '.join(_AS)} with their heads, but this is {what}")
    for key, supported in _ACTIVATIONS.items():
        if (given := getattr(network.config, key, supported[0])) not in supported:
            raise UsageError(f"llama.cpp runs this architecture with {key} {supported[0]} only, but it is {given}")
    return architecture


def _metadata(model: Loaded, architecture: str) -> dict[str, Any]:
    network, config = model.network, model.network.config
    values = {theirs: getattr(config, ours) for ours, theirs in ARCHITECTURES[architecture].keys.items()}
    values["context_length"] = network.context_length
    values["vocab_size"] = network.vocab_size
    if architecture == "gpt2":
        values["feed_forward_length"] = values["feed_forward_length"] or 4 * network.dim
    else:
        values |= {"attention.value_length": values["attention.key_length"]}
        values |= {"rope.dimension_count": values["attention.key_length"]}
        values |= _rope(config)
        # llama.cpp looks all the way back: up to the window both are the same model.
        windows = [window for window in config.windows() if window is not None]  # type: ignore[attr-defined]
        values["context_length"] = min([values["context_length"], *windows])
    metadata: dict[str, Any] = {f"{architecture}.{key}": value for key, value in values.items()}
    if model.tokenizer is None:
        return metadata | {"tokenizer.ggml.model": "none"}
    metadata |= gguf_vocab.write(model.tokenizer, network.vocab_size)
    ends = model.generation_config.get("eos_token_id")
    others = [i for i in (ends if isinstance(ends, list) else [ends]) if i not in (None, model.tokenizer.eos_id)]
    if others:
        metadata.setdefault("tokenizer.ggml.eos_token_id", others[0])
        metadata[EOT] = others[0]
    return metadata


def _rope(config: Any) -> dict[str, Any]:
    parameters = config.rope_parameters
    values = {"rope.freq_base": float(parameters["rope_theta"])}
    kind = parameters["rope_type"]
    if kind == "linear":
        return values | {"rope.scaling.type": "linear", "rope.scaling.factor": float(parameters["factor"])}
    if kind != "default" and (kind, _AS[config.model_type]) != ("llama3", "llama"):
        raise UsageError(f"GGUF is written with rope_type default, linear or LLaMA's llama3, but this is {kind}")
    return values


def _tensors(network: Network, architecture: str) -> Iterator[tuple[str, Tensor]]:
    layout = ARCHITECTURES[architecture]
    head_dim = getattr(network.config, "head_dim", 0)
    for name, tensor in to_disk(network).items():
        theirs = layout.name(name)
        if theirs is None:
            raise CheckpointError(f"a GGUF file of {architecture} has no place for the tensor {name}")
        if layout.is_transposed(theirs):
            tensor = tensor.t()
        if layout.is_paired(theirs):
            tensor = pairs_to_halves(tensor, head_dim, back=True)
        yield theirs, tensor.contiguous()
    if getattr(network.config, "rope_parameters", {}).get("rope_type") == "llama3":
        plain = rotary_frequencies(head_dim, network.config.rope_parameters["rope_theta"])  # type: ignore[attr-defined]
        yield "rope_freqs.weight", plain / network.rotary_frequencies  # type: ignore[operator]


def _kind(gguf: Any, name: str, tensor: Tensor, dtype: str) -> Any:
    """The quantisation of one tensor: vectors and positions are small, and kernels expect them in float32."""
    kinds = gguf.GGMLQuantizationType
    if tensor.dim() < 2 or name == "position_embd.weight":
        return kinds.F32
    if dtype == "q8_0" and tensor.shape[-1] % gguf.GGML_QUANT_SIZES[kinds.Q8_0][0]:
        return kinds.F16
    return kinds[dtype.upper()]


def _adder(writer: Any, value: Any) -> Callable[[str, Any], None]:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    adder: Callable[[str, Any], None] = getattr(writer, f"add_{kinds[type(value)]}")
    return adder


@contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that becomes `target`, complete and on the disk, when the block ends well."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.rename(target)
    except OSError as error:
        raise StorageError(
            f"{target} could not be written: {error.strerror or error}; nothing is left of it"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
