"""Wire messages of the Open Inference Protocol, in a package of our own (docs/adr/0003-oip-in-our-own-package.md)."""

PUBLIC_SERVICE = "inference.GRPCInferenceService"
"""The name under which the service is served and called; the generated code's own name is never on the wire."""
