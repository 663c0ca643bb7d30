"""tessera.client"""
