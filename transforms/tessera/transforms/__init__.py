"""tessera.transforms"""
