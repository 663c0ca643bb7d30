"""Locks without training: a key goes into the first layer of a trained network, and another takes its place, at once.

    sold = lock(bundle, spec, key_of_this_buyer)                                    # it had no key
    sold = lock(bundle, spec, key_of_this_buyer, present=key_of_its_training)       # one key for another
    lockable = Lockable(bundle)                                                     # opened once, for many buyers
    copies = [lockable.lock(spec, key).bundle for key in keys]

Kiya, Iijima, MaungMaung & Kinoshita 2023 (arXiv 2207.05366) did this for the patch embedding of a vision transformer;
here for any network whose first layer takes whole blocks, and with tables for `ffx`.
"""

from tessera.protect.locking.block_maps import BlockMap, block_map
from tessera.protect.locking.entry import Entry, find_entry
from tessera.protect.locking.lock import Lockable, Locked, NotLockable, lock
from tessera.protect.locking.measure import measured, with_quality

__all__ = [
    "BlockMap",
    "Entry",
    "Lockable",
    "Locked",
    "NotLockable",
    "block_map",
    "find_entry",
    "lock",
    "measured",
    "with_quality",
]
