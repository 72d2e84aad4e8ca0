"""What every folder format has to do: hold a function exactly or say which format can, survive a kill, run no code."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from format_cases import D_IN, D_SAE, KINDS, METADATA, K, assert_same_function, expected, inputs, make
from strata.errors import UserError
from strata.formats import dictionary_learning, gemma_scope, native, saelens, sparsify
from strata.formats.registry import FORMATS, format_of, sae_folders
from strata.sae.gates import JumpReLU
from strata.sae.model import SAE, Transcoder

SAES = ("topk", "relu", "jumprelu", "gated")
HOLDS = {
    "saelens": [kind for kind in KINDS if not kind.startswith("topk ")],
    "sparsify": ["topk", "topk transcoder", "topk skip transcoder"],
    "dictionary_learning": list(SAES),
    "gemma_scope": ["relu", "jumprelu", "gated", "relu transcoder", "jumprelu transcoder"],
}
HELD = [(name, kind) for name, kinds in HOLDS.items() for kind in kinds]
NOT_HELD = [(name, kind) for name, kinds in HOLDS.items() for kind in KINDS if kind not in kinds]


# --- the suite of every format --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), HELD)
def test_a_folder_holds_the_function(tmp_path, name, kind):
    sae, folder = make(kind), tmp_path / "new" / "sae"
    FORMATS[name].save(sae, folder)
    assert format_of(folder) == name
    again = FORMATS[name].load(folder)
    assert isinstance(again, Transcoder) == isinstance(sae, Transcoder)
    assert_same_function(again, sae)
    torch.testing.assert_close(again.W_dec.norm(dim=1), torch.ones(D_SAE))
    assert METADATA.items() <= again.metadata.items()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == []


@pytest.mark.parametrize(("name", "kind"), HELD)
def test_what_was_read_is_written_the_same(tmp_path, name, kind):
    FORMATS[name].save(make(kind), tmp_path / "first")
    FORMATS[name].save(FORMATS[name].load(tmp_path / "first"), tmp_path / "second")
    first, second = (FORMATS[name].load(tmp_path / part) for part in ("first", "second"))
    assert first.metadata == second.metadata
    assert_same_function(second, make(kind))
    if name != "gemma_scope" and not (name == "dictionary_learning" and kind == "jumprelu"):  # b_dec folded in and out
        tensors = second.state_dict()
        assert all(torch.equal(tensors[key], tensor) for key, tensor in first.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), NOT_HELD)
def test_what_a_format_cannot_hold_is_named_with_one_that_can(tmp_path, name, kind):
    with pytest.raises(UserError) as error:
        FORMATS[name].save(make(kind), tmp_path / "sae")
    others = [other for other, kinds in HOLDS.items() if kind in kinds]
    named = [other for other in FORMATS if f"'{other}'" in str(error.value)]
    assert named
    assert set(named) <= set(others), f"{named} cannot hold {kind}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_without_its_files_is_named(tmp_path, name):
    assert not FORMATS[name].recognises(tmp_path)
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="must hold"):
            FORMATS[name].load(folder)


@pytest.mark.parametrize(("name", "kind"), [(name, kinds[0]) for name, kinds in HOLDS.items()])
def test_every_file_that_is_gone_or_cut_is_named(tmp_path, name, kind):
    FORMATS[name].save(make(kind), tmp_path / "sae")
    for path in (tmp_path / "sae").iterdir():
        whole = path.read_bytes()
        for part in (b"", whole[:5], whole[: len(whole) // 2]):
            path.write_bytes(part)
            with pytest.raises(UserError, match=path.name):
                FORMATS[name].load(tmp_path / "sae")
        if path.name != gemma_scope.BESIDE:
            path.unlink()
            with pytest.raises(UserError, match=path.name):
                FORMATS[name].load(tmp_path / "sae")
        path.write_bytes(whole)
    assert_same_function(FORMATS[name].load(tmp_path / "sae"), make(kind))


@pytest.mark.parametrize(("name", "kind"), [(name, kinds[0]) for name, kinds in HOLDS.items()])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, name, kind):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can be written"):
        FORMATS[name].save(make(kind), tmp_path / "file" / "sae")


# --- Strata's own folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_out", [D_IN, 7])
def test_every_sae_has_a_native_folder(tmp_path, kind, d_out):
    sae = make(kind, d_out=d_out if "transcoder" in kind else D_IN)
    sae.save(tmp_path)
    assert format_of(tmp_path) == ("sparsify" if kind.startswith("topk ") else "saelens")
    again = SAE.load(tmp_path)
    assert type(again) is type(sae)
    assert_same_function(again, sae)
    assert METADATA.items() <= again.metadata.items()


def test_one_format_replaces_the_other(tmp_path):
    for kind in ("topk", "topk transcoder", "relu"):
        make(kind).save(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        assert_same_function(SAE.load(tmp_path), make(kind))


def test_other_files_of_a_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    make("topk").save(tmp_path)
    make("relu").save(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_saving_over_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"folder.*is a file"):
        make("topk").save(tmp_path / "file")


def killed_at(n: int, work: Callable[[], None]) -> bool:
    """Run in a process that dies, without cleaning up, at its n-th call to the disk; False if it came to its end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    calls = 0

    def dying(function):
        def call(*arguments, **named):
            nonlocal calls
            calls += 1
            if calls > n:
                os._exit(9)
            return function(*arguments, **named)

        return call

    for name in ("fsync", "mkdir", "replace", "rename", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    try:
        work()
    finally:
        os._exit(0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 on
@pytest.mark.parametrize("kind", ["gated", "topk skip transcoder"])
def test_a_kill_leaves_nothing_the_old_or_the_new(tmp_path, kind):
    old, new = make("topk", training_architecture="old"), make(kind, training_architecture="new")
    seen = {True: set(), False: set()}
    for exists in (False, True):
        n = 0
        while True:
            folder = tmp_path / f"{exists}-{n}"
            if exists:
                old.save(folder)
            killed = killed_at(n, lambda folder=folder: new.save(folder))
            if not exists and not folder.exists():
                seen[exists].add("nothing")
            else:
                loaded = SAE.load(folder)
                which = str(loaded.metadata["training_architecture"])
                seen[exists].add(which)
                assert_same_function(loaded, old if which == "old" else new)
            new.save(folder)  # what was left over is no hindrance
            assert_same_function(SAE.load(folder), new)
            assert not list(tmp_path.rglob(".*"))
            if not killed:
                break
            n += 1
        assert n > 4
    assert seen == {False: {"nothing", "new"}, True: {"old", "new"}}


# --- conventions of the others, from tensors that Strata did not write ----------------------------------------------


def test_sparsify_reads_its_signs_and_norms(tmp_path):
    tensors = {
        "encoder.weight": torch.randn(D_SAE, D_IN), "encoder.bias": torch.randn(D_SAE),
        "W_dec": torch.randn(D_SAE, D_IN), "b_dec": torch.randn(D_IN) * 5, "W_skip": torch.randn(D_IN, D_IN),
    }  # fmt: skip
    save_file(tensors, tmp_path / "sae.safetensors")
    x = torch.randn(50, D_IN)
    for transcode in (True, False):
        config = {"d_in": D_IN, "k": K, "num_latents": 0, "expansion_factor": 32, "transcode": transcode}
        (tmp_path / "cfg.json").write_text(json.dumps(config))
        u = x if transcode else x - tensors["b_dec"]
        top = (u @ tensors["encoder.weight"].t() + tensors["encoder.bias"]).relu().topk(K)
        code = torch.zeros(50, D_SAE).scatter(1, top.indices, top.values)
        output = code @ tensors["W_dec"] + tensors["b_dec"] + x @ tensors["W_skip"].t()
        again = sparsify.load(tmp_path)
        torch.testing.assert_close(again.encode(x), code, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(again(x), output, rtol=1e-4, atol=1e-4)
        assert again.metadata == {"training_architecture": "topk", "k": K}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "groupmax"}, "groupmax"),
        ({"signed": True}, "signed TopK"),
        ({"k": "many"}, "`k`.*'many'"),
        ({"k": 0}, "k must be in"),
        ({"d_in": 5}, "agree with the weights"),
    ],
)
def test_sparsify_settings_that_mean_something_else(tmp_path, change, message):
    make("topk").save(tmp_path)
    sparsify.save(make("topk"), tmp_path / "sparsify")
    config = json.loads((tmp_path / "sparsify" / "cfg.json").read_text())
    (tmp_path / "sparsify" / "cfg.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        sparsify.load(tmp_path / "sparsify")


def test_sparsify_has_one_width(tmp_path):
    with pytest.raises(UserError, match="d_in=12 and d_out=7"):
        sparsify.save(make("topk transcoder", d_out=7), tmp_path)
    make("topk").save(tmp_path)
    path = tmp_path / "sae_weights.safetensors"
    path.rename(tmp_path / "sae.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps({"d_in": D_IN, "k": K}))
    with pytest.raises(UserError, match=r"encoder\.weight"):
        SAE.load(tmp_path)


def linear() -> dict[str, torch.Tensor]:
    return {"encoder.weight": torch.randn(D_SAE, D_IN), "decoder.weight": torch.randn(D_IN, D_SAE)}


def matrices() -> dict[str, torch.Tensor]:
    return {
        "W_enc": torch.randn(D_IN, D_SAE), "b_enc": torch.randn(D_SAE), "W_dec": torch.randn(D_SAE, D_IN),
        "b_dec": torch.randn(D_IN) * 3,
    }  # fmt: skip


def foreign_case(name: str) -> tuple[dict[str, torch.Tensor], Callable]:
    """A state dict of dictionary_learning and what its class computes of it: the code for rows x."""
    k, theta = torch.tensor(K, dtype=torch.int32), torch.tensor(0.7)
    if name in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE"):
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(name, "b_dec")
        state = linear() | {"encoder.bias": torch.randn(D_SAE), bias: torch.randn(D_IN) * 3}
        own = {"k": k, "threshold": theta} if "TopK" in name else {}

        def code(x):
            u = x if name == "AutoEncoderNew" else x - state[bias]
            f = (u @ state["encoder.weight"].t() + state["encoder.bias"]).relu()
            if name == "AutoEncoderTopK":
                return torch.zeros_like(f).scatter(1, f.topk(K).indices, f.topk(K).values)
            return f * (f > theta) if name == "BatchTopKSAE" else f

        return state | own, code
    if name == "GatedAutoEncoder":
        state = linear() | {"decoder_bias": torch.randn(D_IN) * 3}
        state |= {key: torch.randn(D_SAE) * 0.5 for key in ("r_mag", "gate_bias", "mag_bias")}

        def code(x):
            u = (x - state["decoder_bias"]) @ state["encoder.weight"].t()
            return (u + state["gate_bias"] > 0) * (state["r_mag"].exp() * u + state["mag_bias"]).relu()

        return state, code
    state = matrices()
    if name == "JumpReluAutoEncoder":
        state["threshold"] = torch.rand(D_SAE)
        return state, lambda x: _jump(x @ state["W_enc"] + state["b_enc"], state["threshold"])
    own = {"k": k, "threshold": theta, "group_sizes": torch.tensor([8, 32])}
    return state | own, lambda x: _jump((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"], theta)


def _jump(pre, threshold):
    return pre.relu() * (pre > threshold)


TRAINED_AS = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk", "BatchTopKSAE": "batchtopk",
    "MatryoshkaBatchTopKSAE": "matryoshka", "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated",
}  # fmt: skip


def write_foreign(folder: Path, name: str, state: dict[str, torch.Tensor]) -> None:
    trainer = {"dict_class": name, "k": K, "lm_name": "EleutherAI/pythia-70m", "layer": 3}
    config = {"trainer": trainer | {"submodule_name": "resid_post_layer_3"}, "buffer": {"ctx_len": 128}}
    torch.save(state, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("name", TRAINED_AS)
def test_dictionary_learning_classes(tmp_path, name):
    state, encode = foreign_case(name)
    write_foreign(tmp_path, name, state)
    again, x = dictionary_learning.load(tmp_path), torch.randn(50, D_IN) * 2
    W_dec = state["W_dec"] if "W_dec" in state else state["decoder.weight"].t()
    b_dec = next(state[key] for key in ("b_dec", "bias", "decoder.bias", "decoder_bias") if key in state)
    code = encode(x)
    norms = 1 if name == "AutoEncoderTopK" else W_dec.norm(dim=1)  # its choice of k would change with the norms
    torch.testing.assert_close(again.encode(x), code * norms, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x), code @ W_dec + b_dec, rtol=1e-4, atol=1e-4)
    assert again.metadata["training_architecture"] == TRAINED_AS[name]
    assert again.metadata["hook_name"] == "blocks.3.hook_resid_post"
    assert (again.metadata["model_name"], again.metadata["context_size"]) == ("pythia-70m", 128)
    again.save(tmp_path / "native")
    torch.testing.assert_close(SAE.load(tmp_path / "native")(x), again(x), rtol=1e-4, atol=1e-4)


def test_a_batchtopk_sae_is_written_as_one(tmp_path):
    sae = make("jumprelu", k=K)
    assert isinstance(sae.gate, JumpReLU)
    sae.gate.threshold.fill_(1.5)
    dictionary_learning.save(sae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["trainer"]["dict_class"] == "BatchTopKSAE"
    assert (config["trainer"]["k"], config["trainer"]["layer"]) == (K, 3)
    assert_same_function(dictionary_learning.load(tmp_path), sae)


def test_dictionary_learning_classes_that_are_unknown(tmp_path):
    write_foreign(tmp_path, "IdentityDict", linear())
    with pytest.raises(UserError, match=r"dict_class.*'IdentityDict'"):
        dictionary_learning.load(tmp_path)
    write_foreign(tmp_path, "AutoEncoder", linear())
    with pytest.raises(UserError, match="Missing: b_enc, b_dec"):
        dictionary_learning.load(tmp_path)
    torch.save([1, 2], tmp_path / "ae.pt")
    with pytest.raises(UserError, match="state dict"):
        dictionary_learning.load(tmp_path)


@pytest.mark.parametrize("d_out", [D_IN, 7])
def test_gemma_scope_arrays(tmp_path, d_out):
    arrays = {
        "w_enc": torch.randn(D_IN, D_SAE), "W_dec": torch.randn(D_SAE, d_out), "b_enc": torch.randn(D_SAE),
        "b_dec": torch.randn(d_out), "threshold": torch.rand(D_SAE) * 2,
    }  # fmt: skip
    np.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})
    again, x = gemma_scope.load(tmp_path), torch.randn(50, D_IN)
    code = _jump(x @ arrays["w_enc"] + arrays["b_enc"], arrays["threshold"])
    torch.testing.assert_close(again.encode(x), code * arrays["W_dec"].norm(dim=1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(again(x), code @ arrays["W_dec"] + arrays["b_dec"], rtol=1e-4, atol=1e-4)
    assert isinstance(again, Transcoder) == (d_out != D_IN)


# --- files that would run code --------------------------------------------------------------------------------------


class Malicious:
    """Pickled, it is an order to make a folder."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def test_a_malicious_ae_pt_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    write_foreign(tmp_path, "AutoEncoder", linear())
    zipped = io.BytesIO()
    torch.save(linear() | {"bias": Malicious(mark)}, zipped)
    for content in (zipped.getvalue(), pickle.dumps(Malicious(mark)), pickle.dumps({"bias": Malicious(mark)})):
        (tmp_path / "ae.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"ae\.pt must hold tensors only.*nothing of it was run"):
            dictionary_learning.load(tmp_path)
        assert not mark.exists()
    pickle.loads(content)
    assert mark.exists()  # it would have


def test_a_malicious_params_npz_is_refused_and_not_run(tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "params.npz"
    arrays = {"W_enc": np.zeros((2, 3)), "threshold": np.array([Malicious(mark)], dtype=object)}
    np.savez(path, **arrays)
    for content in (path.read_bytes(), pickle.dumps(Malicious(mark))):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"params\.npz must hold plain arrays"):
            gemma_scope.load(tmp_path)
        assert not mark.exists()
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(UserError, match="single array"):
        gemma_scope.load(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    with pytest.raises(UserError, match=r"params\.npz"):
        gemma_scope.load(tmp_path)


# --- finding them ---------------------------------------------------------------------------------------------------


def test_folders_are_found_in_the_order_of_their_layers(tmp_path):
    names = ["layers.10", "layers.2", "layers.2.mlp", "group/layers.3"]
    for name in names:
        make("topk").save(tmp_path / name)
    (tmp_path / ".layers.4.unfinished").mkdir()
    make("topk").save(tmp_path / ".layers.4.unfinished" / "sae")
    assert list(sae_folders(tmp_path)) == ["group/layers.3", "layers.2", "layers.2.mlp", "layers.10"]
    assert sae_folders(tmp_path / "layers.2") == {"": tmp_path / "layers.2"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must be the folder of an SAE"):
        sae_folders(tmp_path / "empty")
    with pytest.raises(UserError, match="missing is none"):
        sae_folders(tmp_path / "missing")


# --- the other libraries themselves ---------------------------------------------------------------------------------


@pytest.mark.saelens
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", HOLDS["sparsify"])
def test_sparsify_computes_the_same_function(tmp_path, kind):
    library = pytest.importorskip("sparsify")
    sae = make(kind)
    sparsify.save(sae, tmp_path / "ours")
    theirs, x = library.SparseCoder.load_from_disk(tmp_path / "ours"), inputs(sae)
    code, output = expected(sae, x)
    found = theirs.encode(x)
    dense = torch.zeros(len(x), D_SAE).scatter(1, found.top_indices, found.top_acts)
    torch.testing.assert_close(dense.double(), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x).sae_out.double(), output, rtol=1e-4, atol=1e-4)
    theirs.save_to_disk(tmp_path / "theirs")
    assert_same_function(sparsify.load(tmp_path / "theirs"), sae)


@pytest.mark.saelens
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", [*SAES, "batchtopk"])
def test_dictionary_learning_computes_the_same_function(tmp_path, kind):
    utils = pytest.importorskip("dictionary_learning.utils")
    sae = make("jumprelu", k=K) if kind == "batchtopk" else make(kind)
    if kind == "batchtopk":
        sae.gate.get_parameter("threshold").fill_(1.5)
    dictionary_learning.save(sae, tmp_path)
    theirs, _ = utils.load_dictionary(str(tmp_path), "cpu")
    x = inputs(sae)
    code, output = expected(sae, x)
    torch.testing.assert_close(theirs.encode(x).double(), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(x).double(), output, rtol=1e-4, atol=1e-4)


@pytest.mark.saelens
def test_gemma_scope_arrays_as_saelens_reads_them(tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae = make("gated")
    gemma_scope.save(sae, tmp_path)
    with np.load(tmp_path / "params.npz", allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    config = sae_lens.JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False)
    theirs = sae_lens.JumpReLUSAE(config)
    theirs.load_state_dict(tensors)
    code, output = expected(sae, inputs(sae))
    torch.testing.assert_close(theirs.encode(inputs(sae)).double(), code, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs(inputs(sae)).double(), output, rtol=1e-4, atol=1e-4)


def test_native_is_what_save_and_load_use(tmp_path):
    make("topk transcoder").save(tmp_path)
    assert native.recognises(tmp_path)
    assert not saelens.recognises(tmp_path)
    assert load_file(tmp_path / "sae.safetensors").keys() == {"encoder.weight", "encoder.bias", "W_dec", "b_dec"}
