"""Model directories: what opens, what is refused, and that a stranger's directory runs nothing and reads nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loquela.checkpoint.store import load_model, save_model
from loquela.errors import CheckpointError, ConfigError, LoquelaError, MismatchError, StorageError, UsageError
from loquela.models.base import Network
from loquela.text.tokenizer import Tokenizer

Make = Callable[..., Network]


@pytest.fixture
def directory(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A saved model, without the manifest that would notice every change first."""
    save_model(make(), tokenizer, tmp_path / "model")
    (tmp_path / "model" / "manifest.json").unlink()
    return tmp_path / "model"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# -- what opens


def test_a_directory_is_what_transformers_expects(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.chat_template = "{{ messages[0].content }}"
    save_model(make(), tokenizer, tmp_path / "m", generation_config={"eos_token_id": [0, 1], "temperature": 0.5})
    tokenizer.chat_template = None
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["dtype"] == "float32"
    assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    text = "Hello wörld\n🙂"
    assert theirs.encode(text) == tokenizer.encode(text)
    assert theirs.chat_template == "{{ messages[0].content }}"
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == [0, 1]
    loaded = load_model(tmp_path / "m")
    assert loaded.generation_config == {"eos_token_id": [0, 1], "temperature": 0.5}
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert loaded.tokenizer.chat_template == "{{ messages[0].content }}"
    assert not loaded.network.training


def test_without_a_tokenizer(make: Make, tmp_path: Path) -> None:
    save_model(make(), None, tmp_path / "m")
    assert load_model(tmp_path / "m").tokenizer is None


def test_what_a_config_says_of_its_own_survives(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    network = make(eos_token_id=[7, 8], transformers_version="4.30.0", torch_dtype="bfloat16")
    save_model(network, tokenizer, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["eos_token_id"] == [7, 8]
    assert config["transformers_version"] == "4.30.0"
    assert "torch_dtype" not in config
    assert config["dtype"] == "float32"  # as the file holds them now


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_dtypes(directory: Path, stored: torch.dtype) -> None:
    weights = load_file(directory / "model.safetensors")
    save_file({name: value.to(stored) for name, value in weights.items()}, directory / "model.safetensors")
    for name, expected in (("float32", torch.float32), ("auto", stored), ("bfloat16", torch.bfloat16)):
        network = load_model(directory, dtype=name).network
        assert {p.dtype for p in network.parameters()} == {expected}
    for name, value in load_model(directory).network.state_dict().items():
        assert value.equal(load_model(directory, dtype="auto").network.state_dict()[name].float())


def test_a_sharded_directory_saved_over_leaves_no_shard(make: Make, tmp_path: Path) -> None:
    from loquela.checkpoint.rules import to_disk

    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**make().config.to_dict()))
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    network = load_model(tmp_path).network
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in to_disk(network).items())
    save_model(network, None, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
    ]


# -- what is refused


def refused(directory: Path, *parts: str, kind: type[LoquelaError] = CheckpointError) -> None:
    with pytest.raises(kind) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "must be a directory", "does not exist")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "must be a directory", "is a file")
    refused(tmp_path, "must have a config.json", "has none")
    with pytest.raises(UsageError, match="dtype must be one of float32, float64, float16, bfloat16 or auto"):
        load_model(tmp_path, dtype="float23")


def test_a_directory_without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    refused(directory, "must have model.safetensors or model.safetensors.index.json", "has neither")
    (directory / "pytorch_model.bin").write_bytes(b"")
    refused(directory, "only pytorch_model.bin (pickled weights can run code and are never opened)")


def test_everything_wrong_with_the_tensors_in_one_message(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["model.norm.weight"]
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2, 2)
    weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
    save_file(weights, directory / "model.safetensors")
    refused(
        directory,
        str(directory),
        "1 missing (model.norm.weight [16])",
        "1 extra ('model.layers.7.mlp.up_proj.weight' [2, 2])",
        "1 misshapen (lm_head.weight must be [300, 16], but is [299, 16])",
        kind=MismatchError,
    )


def test_everything_wrong_with_the_config_in_one_message(directory: Path) -> None:
    edit(directory / "config.json", atention_bias=True, quantization_config={"bits": 4}, auto_map={"A": "evil.py"})
    refused(
        directory,
        "unknown key 'atention_bias'; did you mean 'attention_bias'?",
        "'quantization_config'",
        "'auto_map'",
        kind=ConfigError,
    )


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": "\xff"}', '{"a":' * 100_000, "9" * 5000])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_none(directory: Path, name: str, text: str) -> None:
    (directory / name).write_text(text, encoding="latin-1")
    refused(directory, name)


def test_files_that_are_not_files(directory: Path) -> None:
    (directory / "config.json").unlink()
    os.mkfifo(directory / "config.json")  # opened, it would wait forever
    refused(directory, "has none")
    (directory / "config.json").unlink()
    (directory / "config.json").mkdir()
    refused(directory, "has none")


BOMBS: list[dict[str, Any]] = [
    {"vocab_size": 10**9},
    {"max_position_embeddings": 10**9, "vocab_size": 10**9},
    {"num_hidden_layers": 10**9},
    {"hidden_size": 2**30, "intermediate_size": 2**30},
    {"head_dim": 2**30},
    {"num_attention_heads": 10**9, "num_key_value_heads": 10**9},
    {"vocab_size": 10**30},
    {"vocab_size": -1},
    {"vocab_size": "300"},
    {"hidden_size": 0},
    {"num_key_value_heads": 0},
    {"rope_theta": "x"},
    {"rms_norm_eps": None},
    {"hidden_act": ["silu"]},
    {"rope_scaling": [1]},
    {"rope_scaling": {"type": "nothing"}},
    {"model_type": "../../evil"},
    {"model_type": "base"},
    {"model_type": ["llama"]},
    {"model_type": None},
    {"model_type": "os"},
]


@pytest.mark.parametrize("changes", BOMBS, ids=str)
def test_a_config_that_is_a_bomb_or_nonsense(directory: Path, changes: dict[str, Any]) -> None:
    edit(directory / "config.json", **changes)
    refused(directory)


# -- shards


@pytest.fixture
def sharded(make: Make, tmp_path: Path) -> Path:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**make().config.to_dict()))
    theirs.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    load_model(tmp_path / "model")
    return tmp_path / "model"


def remap(directory: Path, change: Callable[[dict[str, str]], None]) -> str:
    """Change the index; return the name of the first shard."""
    file = directory / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = str(next(iter(index["weight_map"].values())))
    change(index["weight_map"])
    file.write_text(json.dumps(index))
    return first


def test_an_index_that_lies(sharded: Path) -> None:
    remap(sharded, lambda m: m.update({"model.norm.weight": m["lm_head.weight"], "ghost": m["lm_head.weight"]}))
    refused(
        sharded, "does not tell the truth", "'model.norm.weight' is not in", "'ghost' is not in", "not in the index"
    )


def test_shards_that_are_missing_are_all_named(sharded: Path) -> None:
    for name in ("model-00002-of-", "model-00003-of-"):
        next(sharded.glob(f"{name}*")).unlink()
    refused(sharded, "lacks 2 of", "model-00002-of-", "model-00003-of-")


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, {}])
def test_an_index_that_is_none(sharded: Path, weight_map: Any) -> None:
    edit(sharded / "model.safetensors.index.json", weight_map=weight_map)
    refused(sharded)


def ways_out(shard: str) -> list[str]:
    """Names that try to leave the directory in order to come to a shard that lies beside it, in `outside`."""
    up = ["../outside/", "./../outside/", "a/../../outside/", "../model/../outside/", ".././outside//", "..\\outside\\"]
    absolute = ["{root}/outside/", "//{root}/outside/", "file://{root}/outside/", "/proc/self/root{root}/outside/"]
    links = ["linked/", "chain/", "linked/../outside/", "./linked/"]
    ends = ["", "\0", "\0.safetensors", "/", "/."]
    return [head + shard + end for head in up + absolute + links for end in ends] + ["link", "link2", "loop", ".", ""]


def test_no_name_of_a_shard_leads_out_of_the_directory(sharded: Path) -> None:
    """The shards outside are valid: if one were read, the model would load."""
    root = sharded.parent
    shutil.copytree(sharded, root / "outside")
    index = (sharded / "model.safetensors.index.json").read_text()
    shard = remap(sharded, lambda m: None)
    (sharded / shard).unlink()
    (sharded / "linked").symlink_to(root / "outside")
    (sharded / "chain").symlink_to("linked")
    (sharded / "link").symlink_to(root / "outside" / shard)
    (sharded / "link2").symlink_to("link")
    (sharded / "loop").symlink_to("loop")
    names = [name.replace("{root}", str(root)) for name in ways_out(shard)]
    assert len(names) > 70
    opened: list[str] = []
    watching = True
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if watching and event == "open" else None)
    for name in names:
        (sharded / "model.safetensors.index.json").write_text(index)
        remap(sharded, lambda m, name=name: m.update({k: name for k, v in m.items() if v == shard}))  # type: ignore[misc]
        refused(sharded)
    watching = False
    assert opened
    assert not [path for path in opened if "outside" in path]


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_no_file_of_a_model_may_be_a_link_to_elsewhere(directory: Path, name: str) -> None:
    outside = directory.parent / "outside"
    (directory / name).rename(outside)
    (directory / name).symlink_to(outside)
    refused(directory, "is a link that leads out of its directory")


# -- code


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


LOADABLE = """model.safetensors model-00001-of-00002.safetensors pytorch_model.bin pytorch_model-00001-of-00002.bin
model.pt model.pth model.ckpt weights.pkl model.bin adapter_model.bin adapter_model.safetensors optimizer.pt
optimizer.safetensors scheduler.pt training_args.bin rng_state.pth consolidated.00.pth tf_model.h5 flax_model.msgpack
tokenizer.json tokenizer_config.json special_tokens_map.json tokenizer.model vocab.json merges.txt added_tokens.json
config.json generation_config.json manifest.json model.safetensors.index.json chat_template.jinja tokenizer.pkl
pytorch_model.bin.index.json data.pkl model.joblib model.npz model.npy""".split()


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_is_never_opened_under_any_name(directory: Path, protocol: int) -> None:
    mark = directory.parent / "mark"
    payload = pickle.dumps(Evil(mark), protocol)
    buffer = io.BytesIO()
    torch.save(Evil(mark), buffer)
    for name in LOADABLE:
        for content in (payload, buffer.getvalue()):
            kept = (directory / name).read_bytes() if (directory / name).exists() else None
            (directory / name).write_bytes(content)
            with contextlib.suppress(LoquelaError):
                load_model(directory)
            (directory / name).unlink()
            if kept is not None:
                (directory / name).write_bytes(kept)
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301
    assert mark.exists()  # the payload works, so the test would have seen it


HOOKS = ["auto_map", "trust_remote_code", "custom_pipelines", "import", "module", "__class__", "_target_", "plugin"]


@pytest.mark.parametrize("key", HOOKS)
def test_a_config_imports_nothing(directory: Path, key: str) -> None:
    (directory / "evil.py").write_text("raise SystemExit('imported')")
    for value in ("evil", {"AutoModelForCausalLM": "evil.Evil"}, ["evil.py"], True):
        edit(directory / "config.json", **{key: value})
        before = set(sys.modules)
        refused(directory, key, kind=ConfigError)
        assert set(sys.modules) - before <= {"loquela.models." + name for name in ("llama",)}


def test_saving_to_a_place_that_cannot_be(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        save_model(make(), None, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
