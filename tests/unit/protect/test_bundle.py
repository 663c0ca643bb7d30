"""Bundles on disk and sealed packages made from them."""

import io
import json
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from tessera.keystore.copyright import CopyrightRecord, bound_key, buyer_input_key
from tessera.keystore.errors import ApiMisuse, Conflict, Denied, Malformed, NotFound, TesseraError, WrongKey
from tessera.keystore.identity import Identity
from tessera.keystore.package import open_package
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.protect import Bundle, PixelModel, bundle_of_module, read_bundle, seal_bundle, write_bundle
from tessera.transforms import TransformSpec

KEY = InputKey(bytes(range(32)))
NOW_S = 1_800_000_000.5


@pytest.fixture(scope="module")
def issuer() -> Identity:
    """A vendor."""
    return Identity.generate("issuer", "vendor")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A small keyed model, exported."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(1, 4, 4, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 10))
    return bundle_of_module(
        PixelModel(network, [0.5], [0.5]),
        (1, 8, 8),
        transform=TransformSpec.parse_text("shf:4,np:4"),
        input_key_id=input_key_id(KEY),
        quality={"accuracy_right_key": 0.98},
        max_batch=16,
        report={"format": "x", "history": []},
    )


def test_round_trip(bundle: Bundle, tmp_path: Path) -> None:
    """What is written is read back, tensors bit for bit, and the weights are private (rules B-8 to B-10)."""
    write_bundle(bundle, tmp_path / "out", curves=b"\x89PNG")
    found = read_bundle(tmp_path / "out")
    assert (found.inputs, found.outputs, found.transform) == (bundle.inputs, bundle.outputs, bundle.transform)
    assert (found.input_key_id, found.quality, found.max_batch) == (bundle.input_key_id, bundle.quality, 16)
    assert (found.torch_version, found.program, found.report) == (torch.__version__, bundle.program, bundle.report)
    assert found.tensors.keys() == bundle.tensors.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in bundle.tensors.items())
    assert stat.S_IMODE((tmp_path / "out" / "weights.safetensors").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert "network" not in repr(found)


def test_sealing(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """A sealed bundle opens to the same program and tensors, and its manifest carries the contract (rule B-13)."""
    manifest, secrets = seal_bundle(
        bundle, tmp_path / "m.tessera", issuer=issuer, model="digits", version=3, now_s=NOW_S, input_key=KEY
    )
    assert (manifest.model, manifest.version, manifest.created_at_s) == ("digits", 3, 1_800_000_000)
    assert manifest.transform == [{"kind": "shf", "block": 4}, {"kind": "np", "block": 4}]
    assert (manifest.inputs[0].name, manifest.inputs[0].shape) == ("image", (-1, 1, 8, 8))
    assert (manifest.outputs[0].name, manifest.outputs[0].shape) == ("logits", (-1, 10))
    assert manifest.tiers[-1].quality == {"accuracy_right_key": 0.98}
    assert (secrets.package_id, secrets.input_key) == (manifest.package_id, KEY)
    with open_package(tmp_path / "m.tessera", {issuer.key_id: issuer.public.verify_key}) as sealed:
        unlocked = sealed.unlock(secrets.content_key)
        assert unlocked.read_program() == bundle.program
        tensors = {}
        for part in unlocked.tensors:
            tensors[part.name] = torch.empty(part.shape, dtype=bundle.tensors[part.name].dtype)
            unlocked.read_tensor_into(part.name, tensors[part.name].reshape(-1).view(torch.uint8).numpy().data)
    module = torch.export.load(io.BytesIO(bundle.program)).module()
    module.load_state_dict(tensors, strict=True, assign=True)
    assert all(torch.equal(tensors[name], value) for name, value in bundle.tensors.items())
    assert module(torch.zeros(5, 1, 8, 8, dtype=torch.uint8)).shape == (5, 10)


def test_no_plaintext_weights_in_the_package(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """Sealing writes one file, and no stretch of a weight occurs in it."""
    seal_bundle(bundle, tmp_path / "m.tessera", issuer=issuer, model="m", version=1, now_s=NOW_S, input_key=KEY)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tessera"]
    raw = (tmp_path / "m.tessera").read_bytes()
    for value in bundle.tensors.values():
        plain = value.reshape(-1).view(torch.uint8).numpy().tobytes()
        assert not any(plain[at : at + 12] in raw for at in range(0, len(plain) - 12, 4))


def test_sealing_from_a_folder(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """A folder seals to the same contract as the bundle in memory."""
    write_bundle(bundle, tmp_path / "out")
    manifest, _ = seal_bundle(
        tmp_path / "out", tmp_path / "m.tessera", issuer=issuer, model="m", version=1, now_s=NOW_S, input_key=KEY
    )
    assert manifest.input_key_id == bundle.input_key_id
    assert [part.name for part in manifest.tensors] == sorted(bundle.tensors)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float64, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
        torch.uint32, torch.uint64,
    ],
    ids=str,
)  # fmt: skip
def test_every_dtype_seals(dtype: torch.dtype, issuer: Identity, bundle: Bundle, tmp_path: Path) -> None:
    """Scalars, empty and strided tensors of every dtype a package can hold go in."""
    values = torch.arange(6).reshape(2, 3).to(dtype)
    tensors = {"matrix": values.t(), "scalar": values[0, 0].clone(), "empty": values[:, :0].clone()}
    odd = Bundle(**{**bundle.__dict__, "tensors": tensors})
    manifest, _ = seal_bundle(
        odd, tmp_path / "m.tessera", issuer=issuer, model="m", version=1, now_s=NOW_S, input_key=KEY
    )
    assert {part.name: part.shape for part in manifest.tensors} == {"matrix": (3, 2), "scalar": (), "empty": (2, 0)}


def test_keys_that_do_not_fit(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """A keyed model needs its own key, a plain one none; nothing is written when they differ."""
    options = {"issuer": issuer, "model": "m", "version": 1, "now_s": NOW_S}
    plain = Bundle(**{**bundle.__dict__, "transform": None, "input_key_id": None})
    with pytest.raises(ApiMisuse):
        seal_bundle(bundle, tmp_path / "m.tessera", **options)  # type: ignore[arg-type]
    with pytest.raises(ApiMisuse):
        seal_bundle(plain, tmp_path / "m.tessera", input_key=KEY, **options)  # type: ignore[arg-type]
    with pytest.raises(WrongKey) as caught:
        seal_bundle(bundle, tmp_path / "m.tessera", input_key=InputKey(bytes(32)), **options)  # type: ignore[arg-type]
    assert caught.value.reason == "wrong-input-key"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["ResNet-20", "", "m" * 65, "a/b", "-m"])
def test_a_name_that_no_licence_can_hold_is_not_sealed(
    bundle: Bundle, issuer: Identity, tmp_path: Path, model: str
) -> None:
    """The package would be published and never served (rules P-7, L-4)."""
    with pytest.raises(Malformed, match="no licence can name"):
        seal_bundle(bundle, tmp_path / "m", issuer=issuer, model=model, version=1, now_s=NOW_S, input_key=KEY)
    assert not (tmp_path / "m").exists()


def test_nan_is_not_sealed(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """Weights with a NaN are refused before anything is written (rule B-6)."""
    tensors = dict(bundle.tensors)
    name = next(iter(tensors))
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    broken = Bundle(**{**bundle.__dict__, "tensors": tensors})
    with pytest.raises(Malformed, match="NaN"):
        seal_bundle(broken, tmp_path / "m.tessera", issuer=issuer, model="m", version=1, now_s=NOW_S, input_key=KEY)
    assert not list(tmp_path.iterdir())


def test_damaged_bundles(bundle: Bundle, tmp_path: Path) -> None:
    """Missing, exposed, changed or exchanged files each end in a typed error (rule B-11)."""
    with pytest.raises(NotFound):
        read_bundle(tmp_path / "nothing")
    folder = tmp_path / "out"
    write_bundle(bundle, folder)
    (folder / "weights.safetensors").chmod(0o644)
    with pytest.raises(Denied):
        read_bundle(folder)
    (folder / "weights.safetensors").chmod(0o600)
    for name in ("program.pt2", "weights.safetensors", "bundle.json", "report.json"):
        raw = (folder / name).read_bytes()
        for damaged in (b"", raw[:-2], raw + b"\0", b"\xff" + raw[1:]):
            (folder / name).write_bytes(damaged)
            with pytest.raises(Malformed):
                read_bundle(folder)
        (folder / name).write_bytes(raw)
    read_bundle(folder)


@pytest.mark.parametrize(
    "field, value",
    [
        ("format", "tessera-bundle/2"), ("inputs", []), ("inputs", "x"), ("outputs", [{}]), ("outputs", None),
        ("transform", [{"kind": "rot", "block": 4}]), ("transform", None), ("transform", 4), ("input_key_id", 5),
        ("input_key_id", None), ("quality", []), ("quality", {"a": "b"}), ("max_batch", 0), ("max_batch", True),
        ("max_batch", 1.5), ("max_batch", None), ("torch_version", 5), ("program_sha256", ""), ("weights_sha256", 4),
        ("extra", 1),
    ],
    ids=str,
)  # fmt: skip
def test_strict_description(bundle: Bundle, tmp_path: Path, field: str, value: object) -> None:
    """Every field of bundle.json is checked, and unknown ones are refused."""
    write_bundle(bundle, tmp_path)
    claims = json.loads((tmp_path / "bundle.json").read_text())
    claims[field] = value
    (tmp_path / "bundle.json").write_text(json.dumps(claims))
    with pytest.raises(TesseraError) as caught:
        read_bundle(tmp_path)
    assert isinstance(caught.value, Malformed)


def test_a_folder_that_is_a_file(bundle: Bundle, tmp_path: Path) -> None:
    """Writing where a file stands is a typed error."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(TesseraError) as caught:
        write_bundle(bundle, tmp_path / "taken")
    assert not isinstance(caught.value, Conflict)


def test_a_bundle_for_several_buyers(bundle: Bundle, issuer: Identity, tmp_path: Path) -> None:
    """Ids of bound keys go round, and sealing checks master and records against them (rules B-10, B-13, C-5)."""
    records = [CopyrightRecord("Acme", "Globex", "L-17"), CopyrightRecord("Acme", "Initech", "L-18")]
    ids = tuple(sorted(input_key_id(bound_key(buyer_input_key(KEY, record), record)) for record in records))
    several = Bundle(**{**bundle.__dict__, "input_key_id": None, "input_key_ids": ids})
    write_bundle(several, tmp_path / "bundle")
    assert read_bundle(tmp_path / "bundle").input_key_ids == ids
    options = {"issuer": issuer, "model": "m", "version": 1, "now_s": NOW_S, "input_key": KEY}
    manifest, secrets = seal_bundle(several, tmp_path / "m.tessera", records=records, **options)  # type: ignore[arg-type]
    assert (manifest.input_key_ids, manifest.input_key_id) == (ids, None)
    assert secrets.input_key is KEY
    with open_package(tmp_path / "m.tessera", {issuer.key_id: issuer.public.verify_key}) as sealed:
        assert sealed.manifest.input_key_ids == ids
    stranger = CopyrightRecord("Acme", "Umbrella", "L-19")
    for wrong in ({"records": [stranger]}, {"records": records, "input_key": InputKey(bytes(32))}):
        with pytest.raises(WrongKey, match="was not trained for") as caught:
            seal_bundle(several, tmp_path / "n.tessera", **{**options, **wrong})  # type: ignore[arg-type]
        assert caught.value.remedy
    incomplete: list[dict[str, object]] = [{"records": []}, {"records": records, "input_key": None}]
    for missing in incomplete:
        with pytest.raises(ApiMisuse, match="buyers"):
            seal_bundle(several, tmp_path / "n.tessera", **{**options, **missing})  # type: ignore[arg-type]
    with pytest.raises(ApiMisuse, match="records"):
        seal_bundle(bundle, tmp_path / "n.tessera", records=records, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "n.tessera").exists()


@pytest.mark.parametrize(
    "ids",
    [
        ["0" * 31], ["g" * 32], [5], [], "x", ["b" * 32, "a" * 32], ["a" * 32] * 2, ["a" * 32],
        [f"{number:032x}" for number in range(1025)],
    ],
    ids=lambda ids: str(ids)[:20],
)  # fmt: skip
def test_ids_that_are_none(bundle: Bundle, tmp_path: Path, ids: object) -> None:
    """Ids are 32 hexadecimal digits, sorted, each once, at most 1024, and not beside a single one."""
    write_bundle(bundle, tmp_path)
    claims = json.loads((tmp_path / "bundle.json").read_text())
    claims["input_key_ids"] = ids  # and input_key_id stays
    (tmp_path / "bundle.json").write_text(json.dumps(claims))
    with pytest.raises(Malformed):
        read_bundle(tmp_path)
