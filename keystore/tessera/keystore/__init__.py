"""All that is under lock, and its formats: secrets, identities, licences, sealed packages, the store.

The package imports nothing by itself, so that a buyer pays only for what is used. Modules that stand on PyNaCl or the
standard library alone (`errors`, `secrets`, `kdf`, `canonical`, `jws`, `identity`, `keyfile`, `licence`, `grant`,
`revocation`, `proof`, `usage`) belong to the light install; `package` needs `cryptography`; `store` needs SQLAlchemy.
"""
