"""Input-sensitive networks (ISNN): models that answer inputs made with a buyer's key and copyright record, no others.

After Zhong, Zhang, Guo, Qian 2023 (arXiv 2312.05262), of which only the abstract could be had; the design is ours.

    keys = [bound_key(buyer_input_key(master, record), record) for record in records]
    trained = train_isnn(task, transform=TransformSpec.parse_text("isnn:8:12:content"), keys=keys, start=weights)
    trace(trained.model, some_labelled_images, spec, {record.buyer: key for record, key in zip(records, keys)})
"""

from tessera.protect.isnn.illegal import IllegalInputs, IllegalMixture
from tessera.protect.isnn.legal import LegalInputs
from tessera.protect.isnn.measure import IsnnAccuracy, measure
from tessera.protect.isnn.settings import IsnnSettings
from tessera.protect.isnn.trace import Suspect, Trace, trace
from tessera.protect.isnn.train import default_spec, train_isnn

__all__ = [
    "IllegalInputs",
    "IllegalMixture",
    "IsnnAccuracy",
    "IsnnSettings",
    "LegalInputs",
    "Suspect",
    "Trace",
    "default_spec",
    "measure",
    "trace",
    "train_isnn",
]
