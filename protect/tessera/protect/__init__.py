"""tessera.protect"""
