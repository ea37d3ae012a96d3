import hashlib
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mask2former.checkpoint import CheckpointError, from_transformers, read_checkpoint
from mask2former.model_zoo import SETTINGS
from tests.checkpoint.test_names import block, linear, norm
from tests.checkpoint.web import Site, serve
from tests.conftest import load_script
from tests.tiny import TINY

script = load_script("tools/convert_weights.py")


@pytest.fixture
def state():
    """Weights of every dtype, with NaN, infinity, a scalar and an empty tensor."""
    return {
        "backbone.levels.0.w": torch.tensor([[1.0, float("nan")], [-0.0, float("inf")]]),
        "half": torch.randn(3, 2).half(),
        "bfloat": torch.randn(4).bfloat16(),
        "double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }


def same(a, b):
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].shape == b[name].shape and a[name].equal(b[name])
        for name in a
        if not b[name].isnan().any()
    )


def run(*words):
    script.main([str(word) for word in words])


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_there_and_back_without_changing_a_bit(tmp_path, state, capsys):
    source = tmp_path / "model_final.pth"
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": wrapped, "optimizer": {"lr": 0.1}, "iteration": 9}, source)
    run(source, tmp_path / "new" / "w.safetensors")
    printed = capsys.readouterr().out
    assert "left out: optimizer, iteration" in printed and "equal to the last bit" in printed
    converted = load_file(tmp_path / "new" / "w.safetensors")
    assert same(converted, state)
    name = "backbone.levels.0.w"
    assert converted[name].numpy().tobytes() == state[name].numpy().tobytes()
    checksum = hashlib.sha256(source.read_bytes()).hexdigest()
    assert checksum in printed
    assert metadata(tmp_path / "new" / "w.safetensors") == {
        "format": "pt",
        "source": str(source),
        "source_sha256": checksum,
    }
    run(tmp_path / "new" / "w.safetensors", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert same(back["model"], state) and back["model"][name].numpy().tobytes() == state[name].numpy().tobytes()
    assert back["metadata"]["source"] == str(tmp_path / "new" / "w.safetensors")
    assert not list(tmp_path.rglob(".*"))


def test_tensors_that_share_memory_are_kept(tmp_path):
    table = torch.arange(6.0)
    torch.save({"a": table, "b": table, "c": table.reshape(2, 3).T}, tmp_path / "w.pth")
    run(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert load_file(tmp_path / "w.safetensors")["c"].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_pickles_only_when_allowed(tmp_path, capsys):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": {"a": torch.ones(2).numpy()}, "matching_heuristics": True}))
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "w.pkl", tmp_path / "w.pth")
    assert "--allow-pickle" in capsys.readouterr().err
    run(tmp_path / "w.pkl", tmp_path / "w.pth", "--allow-pickle")
    assert read_checkpoint(tmp_path / "w.pth")["model"]["a"].tolist() == [1, 1]


def test_an_output_is_replaced_only_when_asked(tmp_path, state, capsys):
    torch.save(state, tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_text("precious")
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "w.pth", tmp_path / "w.safetensors")
    assert "w.safetensors exists; --overwrite" in capsys.readouterr().err
    run(tmp_path / "w.pth", tmp_path / "w.safetensors", "--overwrite")
    assert same(load_file(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_reads_back_differently_is_not_left_there(tmp_path, state, monkeypatch, capsys, ending):
    torch.save(state, tmp_path / "in.pth")
    reading = read_checkpoint

    def flip_a_bit(path, **options):
        content = reading(path, **options)
        if "kind" in options:
            content["model"]["backbone.levels.0.w"].view(torch.uint8)[0, 0] ^= 1
        return content

    monkeypatch.setattr(script, "read_checkpoint", flip_a_bit)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "in.pth", tmp_path / f"out{ending}")
    assert "backbone.levels.0.w differs from what was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.pth"]


@pytest.fixture(scope="module")
def coco_names():
    config = script.ROOT / SETTINGS["coco-panoptic"].config_file
    return {name: torch.zeros(value.shape) for name, value in script.model_names(config, TINY).items()}


def test_the_setting_is_checked_and_noted(tmp_path, coco_names, capsys):
    torch.save(coco_names, tmp_path / "w.pth")
    run(tmp_path / "w.pth", tmp_path / "w.safetensors", "--setting", "coco-panoptic", *TINY)
    assert metadata(tmp_path / "w.safetensors")["setting"] == "coco-panoptic"
    assert "sem_seg_head.predictor" in capsys.readouterr().out
    run(tmp_path / "w.safetensors", tmp_path / "again.safetensors")
    assert metadata(tmp_path / "again.safetensors")["setting"] == "coco-panoptic", "carried over"
    config = script.ROOT / SETTINGS["cityscapes-panoptic"].config_file
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "w.pth", tmp_path / "x.safetensors", "--config-file", config, *TINY)
    errors = capsys.readouterr().err
    row = next(line.split() for line in errors.splitlines() if "class_embed.weight" in line)
    assert row == ["sem_seg_head.predictor.class_embed.weight", "134x32", "20x32"]
    assert "Nothing was written" in errors and not (tmp_path / "x.safetensors").exists()


def test_a_backbone_is_checked_as_one(tmp_path, coco_names, capsys):
    prefix = "backbone."
    state = {name.removeprefix(prefix): value for name, value in coco_names.items() if name.startswith(prefix)}
    save_file(state, tmp_path / "w.safetensors")
    run(tmp_path / "w.safetensors", tmp_path / "w.pth", "--setting", "coco-panoptic", *TINY)
    assert "as initialised" in capsys.readouterr().out
    assert same(read_checkpoint(tmp_path / "w.pth")["model"], state)


def test_urls_are_downloaded(tmp_path, state, monkeypatch, capsys):
    monkeypatch.setenv("DINAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    torch.save(state, tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    with serve(Site(w=content)) as site:
        run(f"{site.url}/w.pth#sha256={hashlib.sha256(content).hexdigest()}", tmp_path / "w.safetensors")
    assert metadata(tmp_path / "w.safetensors")["source"].startswith("http://127.0.0.1")


def test_a_dinat_of_transformers_is_renamed(tmp_path, capsys):
    state = {f"dinat.{name}": torch.randn(shape) for name, shape in transformers_block().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    run(tmp_path / "pytorch_model.bin", tmp_path / "w.safetensors", "--from-transformers")
    renamed = load_file(tmp_path / "w.safetensors")
    assert {name: tuple(value.shape) for name, value in renamed.items()} == block(
        "levels.2.blocks.4", 64, 2, 3, True, 7
    )
    source = "dinat.encoder.levels.2.layers.4"
    parts = [state[f"{source}.attention.self.{name}.weight"] for name in ("query", "key", "value")]
    # Rows of query, then key, then value, as one linear layer to 3 * 64 channels.
    assert torch.equal(renamed["levels.2.blocks.4.attn.qkv.weight"].unflatten(0, (3, 64)), torch.stack(parts))
    assert torch.equal(renamed["levels.2.blocks.4.gamma2"], state[f"{source}.layer_scale_parameters"][1])
    del state[f"{source}.attention.self.key.bias"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path / "pytorch_model.bin", tmp_path / "x.safetensors", "--from-transformers")
    assert "expected query, key and value" in capsys.readouterr().err


def transformers_block():
    """Names and shapes of a layer in transformers' modeling_dinat.py: 64 channels, 2 heads, kernel 7."""
    shapes = {"attention.self.rpb": (2, 13, 13), "layer_scale_parameters": (2, 64)}
    for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
        shapes |= linear(name, 64, 64)
    shapes |= linear("intermediate.dense", 64, 192) | linear("output.dense", 192, 64)
    shapes |= norm("layernorm_before", 64) | norm("layernorm_after", 64)
    return {f"encoder.levels.2.layers.4.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dinat.embeddings.patch_embeddings.projection.1.bias", "patch_embed.proj.1.bias"),
        ("embeddings.norm.weight", "patch_embed.norm.weight"),
        ("encoder.levels.1.downsample.reduction.weight", "levels.1.downsample.reduction.weight"),
        ("dinat.layernorm.bias", "norm.bias"),
        ("classifier.weight", "head.weight"),
        ("hidden_states_norms.stage4.bias", "norm3.bias"),
    ],
)
def test_names_of_transformers(name, expected):
    assert list(from_transformers({name: torch.zeros(1)})) == [expected]
    with pytest.raises(CheckpointError, match=f"vit.{name}: not a name"):
        from_transformers({f"vit.{name}": torch.zeros(1)})


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["absent.pth", "w.safetensors"], 1, "checkpoint not found: absent.pth"),
        (["a.pth", "w.pkl"], 2, "expected a name that ends in .safetensors or .pth"),
        (["a.pth", "w.pth", "MODEL.DEVICE", "cpu"], 2, "need --setting or --config-file"),
        (["a.pth", "w.pth", "--setting", "voc"], 2, "invalid choice"),
        (["a.pth", "w.pth", "--to-transformers"], 2, "expected a folder"),
        (["a.pth", "w", "--to-transformers", "--from-transformers"], 2, "not allowed with"),
    ],
)
def test_wrong_calls_are_explained(tmp_path, monkeypatch, capsys, words, status, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(*words)
    assert end.value.code == status
    assert message in capsys.readouterr().err


TO_TRANSFORMERS = ("--to-transformers", "--setting", "coco-panoptic", *TINY)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory):
    """A checkpoint of a small Mask2Former, as a training writes it."""
    path = tmp_path_factory.mktemp("mask2former") / "model_final.pth"
    names = script.model_names(script.ROOT / SETTINGS["coco-panoptic"].config_file, TINY)
    stream = torch.Generator().manual_seed(0)
    state = {name: torch.randn(value.shape, generator=stream) for name, value in names.items()}
    torch.save({"model": state, "iteration": 9}, path)
    return path, state


def test_mask2former_goes_to_transformers_and_back(tmp_path, mask2former, capsys):
    transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")
    path, state = mask2former
    run(path, tmp_path / "folder", *TO_TRANSFORMERS)
    folder = tmp_path / "folder"
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    assert metadata(folder / "model.safetensors")["setting"] == "coco-panoptic"
    model, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert model.config.id2label[0] == "person" and len(model.config.label_ids_to_fuse) == 53
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert (processor.size.shortest_edge, processor.size.longest_edge, processor.size_divisor) == (64, 128, 32)
    # The folder, its file, and the folder as transformers saves it.
    model.save_pretrained(tmp_path / "saved")
    for number, words in enumerate(
        ([folder], [folder / "model.safetensors", "--from-transformers"], [tmp_path / "saved"])
    ):
        run(words[0], tmp_path / f"{number}.pth", *words[1:])
        assert same(read_checkpoint(tmp_path / f"{number}.pth")["model"], state)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        run(path, folder, *TO_TRANSFORMERS)
    assert "config.json exists; --overwrite" in capsys.readouterr().err
    run(path, folder, *TO_TRANSFORMERS, "--overwrite")


def test_a_setting_is_recognised_by_names_and_shapes(mask2former):
    names = script.model_names(script.ROOT / SETTINGS["coco-instance"].config_file)
    assert script.recognise(names) == "coco-instance"
    assert script.recognise(mask2former[1]) is None


def test_what_can_not_become_a_folder_is_explained(tmp_path, mask2former, capsys):
    path, state = mask2former
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    torch.save(backbone, tmp_path / "backbone.pth")
    (tmp_path / "empty").mkdir()
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "model.safetensors.index.json").write_text("{}")
    for words, message in (
        ([path, tmp_path / "x", "--to-transformers"], "those of none of the published settings; --config-file names"),
        ([tmp_path / "backbone.pth", tmp_path / "x", *TO_TRANSFORMERS], "does not fit"),
        ([tmp_path / "empty", tmp_path / "x.pth"], "no model.safetensors in this folder"),
        ([tmp_path / "split", tmp_path / "x.pth"], "save the model with max_shard_size"),
        ([path, tmp_path / "x", *TO_TRANSFORMERS, "INPUT.FORMAT", "BGR"], "library has only 'RGB'"),
    ):
        with pytest.raises(SystemExit, match="1"):
            run(*words)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.pth").exists()
