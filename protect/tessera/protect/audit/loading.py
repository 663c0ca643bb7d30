"""Subjects and samples from what a vendor has on disk: bundles, packages, checkpoints, arrays."""

import copy
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tessera.keystore._files import read_limited
from tessera.keystore.errors import ApiMisuse, Malformed, WrongKey
from tessera.keystore.grant import PackageSecrets
from tessera.keystore.package import Manifest, TensorSpec, UnlockedPackage, open_package
from tessera.keystore.proof import input_key_id
from tessera.keystore.secrets import InputKey
from tessera.keystore.tiers import TierKey
from tessera.protect.audit.cut import Cut
from tessera.protect.audit.programs import TRAINING, ProgramModel
from tessera.protect.audit.subject import Kind, Lock, Sample, Subject, split_sample
from tessera.protect.audit.tier_loading import Opening, cut_of_bundle, cut_of_package, opening_of
from tessera.protect.bundle import Bundle
from tessera.protect.checkpoint import FILE_NAME, MAX_BYTES, restore_weights
from tessera.protect.data import ArrayDataset, SegmentationDataset
from tessera.protect.data.npz import read_npz, take
from tessera.protect.evaluate import LabelledImages
from tessera.protect.seal import SAFETENSORS_DTYPES
from tessera.protect.task import TrainingTask
from tessera.transforms import TransformSpec

_LABELS = "An audit needs labelled images: write them with numpy.savez(FILE, images=uint8 NCHW, labels=integers)."
_PLAIN = "Train it with `tessera protect train --transform … --key …` first; there is no lock to attack."


def subject_of_bundle(bundle: Bundle, key: InputKey | None, *, name: str, task: TrainingTask | None = None) -> Subject:
    """Return a bundle's full model as a subject; with `task`, from-scratch training uses the task's own network.

    Raises `ApiMisuse` for a model with neither a transform nor tiers or without its key, `WrongKey` for another key,
    `Malformed` when the program cannot be loaded.
    """
    return _of_program(
        bundle.program, bundle.tensors, bundle.inputs[0], bundle.outputs[0],
        _lock(bundle.transform, _ids(bundle), key, name), cut_of_bundle(bundle), name, task,
    )  # fmt: skip


def subject_of_file(
    path: Path,
    issuers: Mapping[str, bytes],
    secrets: PackageSecrets,
    *,
    key: InputKey | None = None,
    task: TrainingTask | None = None,
) -> Subject:
    """Return the model of the package at `path` as a subject; `key` stands in for an input key that `secrets` lack.

    Every byte is held against the signed digests. Raises as `subject_of_package` and `open_package`.
    """
    with open_package(path, issuers) as sealed:
        return subject_of_package(
            sealed.unlock(secrets.content_key, check_digests=True),
            key or secrets.input_key,
            tier_key=secrets.tier_key,
            task=task,
            opening=opening_of(path, issuers, secrets),
        )


def subject_of_package(
    package: UnlockedPackage,
    key: InputKey | None,
    *,
    tier_key: TierKey | None = None,
    task: TrainingTask | None = None,
    opening: Opening | None = None,
) -> Subject:
    """Return a package's full model as a subject, decrypted in memory; one with tiers needs the key of its top tier.

    `opening` opens the file again when tier keys are tried on it. Raises as `subject_of_bundle`, and what reading a
    package raises.
    """
    manifest = package.manifest
    kinds = {text: dtype for dtype, text in SAFETENSORS_DTYPES.items()}
    raw = {part.name: bytearray(part.size) for part in package.tensors}
    package.read_tensors_into(raw)
    tensors = {
        part.name: (
            torch.frombuffer(raw[part.name], dtype=torch.uint8) if part.size else torch.empty(0, dtype=torch.uint8)
        )
        .view(kinds[part.dtype])
        .reshape(part.shape)
        for part in package.tensors
    }
    spec = None if manifest.transform is None else TransformSpec.from_json(manifest.transform)
    name, program = f"{manifest.model} version {manifest.version}", package.read_program()
    return _of_program(
        program, tensors, manifest.inputs[0], manifest.outputs[0], _lock(spec, _ids(manifest), key, name),
        cut_of_package(package, program, tensors, tier_key, opening), name, task,
    )  # fmt: skip


def subject_of_checkpoint(path: Path, key: InputKey, task: TrainingTask) -> Subject:
    """Return the model of a training checkpoint, a file or its folder, with the network of `task`.

    Raises `Malformed` when it is no checkpoint, `ApiMisuse` when its run was not keyed, `WrongKey` for another key,
    `Conflict` when the network is another.
    """
    file = path / FILE_NAME if path.is_dir() else path
    run, weights = _checkpoint(file)
    if not isinstance(run.get("transform"), str):
        raise ApiMisuse(f"{file} is of a run without a transform", remedy=_PLAIN)
    _check_key(key, run.get("input_key_ids") or [str(run.get("input_key_id"))])
    spec = TransformSpec.parse_text(run["transform"])
    model = task.model(spec)
    restore_weights(model, weights, file.parent)
    return subject_of_module(model, key, spec, task, name=str(run.get("task", "model")))


def subject_of_module(
    model: nn.Module, key: InputKey, spec: TransformSpec, task: TrainingTask, *, name: str
) -> Subject:
    """Return a model that `task` describes and that was trained under `key`, as a subject."""
    kept = copy.deepcopy(model).eval()
    return Subject(
        name=name,
        victim=lambda: copy.deepcopy(kept),
        fresh=lambda seed: _fresh(task, spec, seed),
        shape=task.shape,
        lock=Lock(spec, key),
        kind=task.kind,
        classes=task.class_count,
        training="the recipe's own network, batch norms and dropout in training mode",
        augment=task.augment,
    )


def sample_of_npz(path: Path, classes: int, *, seed: int) -> Sample:
    """Return the labelled images of an .npz file: `images` uint8 (N, C, H, W), `labels` integers (N,) or (N, H, W).

    Half of them, by chance, are the attacker's. Raises `NotFound`, or `Malformed` when it holds something else.
    """
    arrays = read_npz(path)
    for name in ("images", "labels"):
        if name not in arrays:
            found = ", ".join(sorted(arrays)) or "nothing"
            raise Malformed(f"{path} has no array called {name}; it holds {found}", remedy=_LABELS)
    return split_sample(
        labelled(take(arrays, "images", path), take(arrays, "labels", path), classes, path), str(path), seed=seed
    )


def sample_of_task(task: TrainingTask) -> Sample:
    """Return a recipe's data: attackers have (parts of) the training set, and the test set is held out."""
    return Sample(task.data.train, task.data.test, f"the data of {task.name}")


def labelled(images: NDArray[Any], labels: NDArray[Any], classes: int, path: Path) -> LabelledImages:
    """Return arrays as a data set. Raises `Malformed` naming `path` when they are no labelled images."""
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        raise Malformed(f"{path}: images are {images.dtype} {images.shape}, not uint8 (N, C, H, W)", remedy=_LABELS)
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), *images.shape[2:])):
        raise Malformed(f"{path}: labels are {labels.dtype} {labels.shape} for images {images.shape}", remedy=_LABELS)
    if int(labels.min()) < 0:
        raise Malformed(f"{path}: label {int(labels.min())} is negative", remedy="Count the classes from 0.")
    try:
        if labels.ndim == 1:
            return ArrayDataset(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
        return _pixels(images, labels, classes)
    except ApiMisuse as error:  # what the classes say of a caller's arrays is here what a file holds
        raise Malformed(f"{path}: {error.public}", remedy=_LABELS) from error


def _pixels(images: NDArray[Any], labels: NDArray[Any], classes: int) -> SegmentationDataset:
    """The one label value at or above `classes` that there may be is ignored."""
    if int(labels.max()) > 255:
        raise ApiMisuse(f"label {int(labels.max())} is larger than a byte")
    high = int(labels.max())
    pixels = torch.from_numpy(labels.astype(np.uint8))
    return SegmentationDataset(torch.from_numpy(images), pixels, classes, high if high >= classes else None)


def _of_program(
    program: bytes,
    tensors: Mapping[str, Tensor],
    takes: TensorSpec,
    gives: TensorSpec,
    lock: Lock | None,
    cut: Cut | None,
    name: str,
    task: TrainingTask | None,
) -> Subject:
    if lock is None and cut is None:
        raise ApiMisuse(f"{name} takes plain inputs and has no tiers, so there is nothing to audit", remedy=_PLAIN)
    shape, kind, classes = _contract(takes, gives)
    if task is not None and (task.shape, task.kind) != (shape, kind):
        raise ApiMisuse(
            f"the recipe {task.name} is a {task.kind} of {task.shape}, and the model a {kind} of {shape}",
            remedy="Give the recipe that the model was trained with.",
        )
    weights = tensors if cut is None else cut.state(cut.tiers)
    first = ProgramModel(program, weights)  # says at once when they do not belong together
    del first

    def fresh(seed: int) -> nn.Module:
        made = ProgramModel(program, weights)
        made.reset(seed)
        return made

    return Subject(
        name=name,
        victim=lambda: ProgramModel(program, weights),
        fresh=fresh if task is None else lambda seed: _fresh(task, None if lock is None else lock.spec, seed),
        shape=shape,
        lock=lock,
        cut=cut,
        kind=kind,
        classes=classes,
        training=TRAINING if task is None else f"{TRAINING}; from scratch: the recipe's own network, fresh",
        augment=None if task is None else task.augment,
    )


def _contract(takes: TensorSpec, gives: TensorSpec) -> tuple[tuple[int, int, int], Kind, int]:
    """Return shape, kind and number of classes of what goes in and comes out. Raises `ApiMisuse` for other models."""
    shape = tuple(takes.shape[1:])
    if takes.datatype != "UINT8" or len(shape) != 3:
        raise ApiMisuse(f"an audit needs a model of uint8 images, and this one takes {takes.datatype} {takes.shape}")
    channels, height, width = shape
    out = tuple(gives.shape[1:])
    if len(out) == 1:
        return (channels, height, width), "classification", out[0]
    if len(out) == 3 and out[1:] == (height, width):
        return (channels, height, width), "segmentation", out[0]
    raise ApiMisuse(
        f"an audit needs a classification or a segmentation, and this model gives {gives.shape}",
        remedy="Audit a model that gives (N, classes) or (N, classes, H, W).",
    )


def _ids(source: Bundle | Manifest) -> Sequence[str]:
    """Return the ids of the keys that a model answers; of bound keys (rule C-4), if there are several."""
    return source.input_key_ids or ([] if source.input_key_id is None else [source.input_key_id])


def _lock(spec: TransformSpec | None, key_ids: Sequence[str], key: InputKey | None, name: str) -> Lock | None:
    """Return what a model's inputs are transformed with. Raises `ApiMisuse` without its key, `WrongKey` for another."""
    if spec is None or not key_ids:
        return None
    if key is None:
        raise ApiMisuse(
            f"{name} was trained with the input key {key_ids[0]}, and without it no attack can be judged",
            remedy="Give that key with --key, for a model made for buyers the master and --buyers; it is in no report.",
        )
    _check_key(key, key_ids)
    return Lock(spec, key)


def _check_key(key: InputKey, key_ids: Sequence[str]) -> None:
    if input_key_id(key) not in key_ids:
        raise WrongKey(
            "the input key is not the one the model was trained with",
            reason="wrong-input-key",
            remedy=f"Give the key with the id {key_ids[0]}, or the master and --buyers for a model made for buyers.",
        )


def _fresh(task: TrainingTask, spec: TransformSpec | None, seed: int) -> nn.Module:
    """Return the task's network as it is before training; `prepare` sees plain images, as this attacker does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = task.model(spec)
        if task.prepare is not None:
            stride = math.ceil(len(task.data.train) / 10_000)
            task.prepare(model, task.data.train.images[::stride])
    return model


def _checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a checkpoint's run and the weights that would be kept. Raises `Malformed`."""
    raw = read_limited(file, max_bytes=MAX_BYTES, private=True)
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        run, weights = found["run"], found["average"] or found["model"]
        if not isinstance(run, dict) or not isinstance(weights, dict):
            raise TypeError("not a checkpoint")
    except Exception as error:  # torch raises many unrelated types for a damaged file
        raise Malformed(f"{file} is not a checkpoint", remedy="Give what `train --checkpoints DIR` wrote.") from error
    return run, weights
