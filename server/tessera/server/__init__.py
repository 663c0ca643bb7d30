"""tessera.server"""
