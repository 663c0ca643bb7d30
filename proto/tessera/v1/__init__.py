"""Wire messages of Tessera's own services, generated from the .proto files beside this module."""
