"""Who may run what, how much of it, and until when: pure rules over licences, sessions and accounts.

Nothing here knows gRPC, torch or SQL, and nothing reads a clock by itself. `gate.Gate` is the door; the other modules
are its parts. Every refusal is an error of `tessera.keystore.errors` with a reason of `REASONS`.
"""

from tessera.server.admission.accounts import Account, period_start_us
from tessera.server.admission.challenges import Challenges
from tessera.server.admission.gate import Gate
from tessera.server.admission.opening import Opening
from tessera.server.admission.permits import Permit
from tessera.server.admission.ports import ModelDirectory, Offer, UsageView
from tessera.server.admission.sessions import Session, Sessions, SessionToken

__all__ = [
    "Account",
    "Challenges",
    "Gate",
    "ModelDirectory",
    "Offer",
    "Opening",
    "Permit",
    "Session",
    "SessionToken",
    "Sessions",
    "UsageView",
    "period_start_us",
]
