"""Settings of the appliance: TOML file < `TESSERA_*` environment < flags; every limit is a named number here.

Nested names are joined by two underscores in the environment (`TESSERA_LIMITS__MAX_SESSIONS=64`). Unknown keys in the
file or the flags are refused; what Kubernetes puts into the environment for a Service of our name is passed over. No
setting holds a secret: `master` says where the passphrase is, and its value is never echoed.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tessera.keystore.errors import Malformed, NotFound

MIB = 1024 * 1024
ENV_PREFIX = "TESSERA_"
MASTER_SCHEMES = ("file", "env", "fd")

MAX_TRANSPORT = 2**30 - 1
"""gRPC keeps limits in 32 bits, signed, and one of its own is the sum of two of ours."""
LINK_SCHEMES = ("tcp://", "udp://", "sctp://")
"""What Kubernetes puts before the address in `TESSERA_PORT` of every pod beside a Service named `tessera`."""

Count = Annotated[int, Field(gt=0)]
TransportCount = Annotated[int, Field(gt=0, le=MAX_TRANSPORT)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
TransportSeconds = Annotated[float, Field(ge=0.001, le=MAX_TRANSPORT / 1000)]


class Limits(BaseModel):
    """Every cap of the server, with its unit in its name; nothing that a peer sends is unbounded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_message_bytes: TransportCount = 4 * MIB
    """Largest message a peer may send; a larger one is INVALID_ARGUMENT `message-too-large` (rule W-7)."""
    message_headroom_bytes: TransportCount = 4 * MIB
    """How far past `max_message_bytes` the transport still reads, so that we can answer with a reason."""
    max_answer_bytes: TransportCount = 64 * MIB
    """Largest message the server sends."""
    max_metadata_bytes: TransportCount = 32 * 1024
    """Largest set of request headers."""
    max_licence_bytes: Count = 64 * 1024
    """Longest licence, grant or revocation token."""
    max_tensor_bytes: Count | None = None
    """Largest single tensor of a request; None: as large as the message."""
    max_tensors: Count = 64
    """Most inputs in one request."""
    max_rank: Count = 8
    """Most dimensions of one tensor."""
    max_request_id_bytes: Count = 128
    """Longest request id, printable ASCII."""
    max_queue_samples: Count = 4096
    """Samples waiting for one model variant before `queue-full`."""
    max_batch_samples: Count = 64
    """Most samples the batcher puts into one batch; a package's own maximum also holds."""
    max_streams: TransportCount = 1024
    """Concurrent calls on one connection."""
    max_stream_window: Count = 64
    """Frames of one stream in flight at a time; the next is read when one is answered."""
    client_ping_s: TransportSeconds = 10.0
    """Least seconds between the keepalive pings of one client; a connection that pings more often is closed."""
    keepalive_s: TransportSeconds = 60.0
    """Seconds of silence after which the server asks whether a peer is still there; also keeps idle streams open."""
    keepalive_timeout_s: TransportSeconds = 20.0
    """Seconds that the peer has to answer before its connection is closed."""
    max_sessions: Count = 4096
    """Live sessions on this node."""
    max_challenges: Count = 4096
    """Answered challenges remembered until they expire, so that each is good once."""
    session_ttl_s: Seconds = 3600.0
    """Seconds a session lives without renewal; never past the licence's own end."""
    challenge_ttl_s: Seconds = 60.0
    """Seconds a challenge may be answered."""
    clock_tolerance_s: Seconds = 300.0
    """Seconds the clock may lie behind the newest time on record before licences cannot be judged."""
    drain_grace_s: Seconds = 20.0
    """Seconds that work in flight gets to finish after SIGTERM."""
    close_grace_s: Seconds = 1.0
    """Seconds that open connections then get before they are cut."""
    revocation_poll_s: Seconds = 5.0
    """Seconds between looks at the store for revocations that another process has put in force."""
    usage_page_records: Count = 500
    """Ledger records in one message of a usage export."""

    @property
    def tensor_bytes(self) -> int:
        """Largest single tensor of a request."""
        return self.max_tensor_bytes if self.max_tensor_bytes is not None else self.max_message_bytes


class Settings(BaseSettings):
    """What one appliance runs with. Build it with `load_settings`; tests may call the class itself."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, hide_input_in_errors=True
    )

    directory: Path
    """The key store's directory, made by `tessera keystore init`."""
    host: str = "127.0.0.1"
    """Address the gRPC port is bound to; `0.0.0.0` opens it to the network."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8001
    """gRPC port; 0 picks a free one."""
    metrics_host: str = "127.0.0.1"
    """Address the metrics port is bound to."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 8002
    """Prometheus port; 0 picks a free one."""
    metrics: bool = True
    """Whether `/metrics` is served."""
    admin_socket: Path | None = None
    """The operator's Unix socket; default `admin.sock` in the store's directory."""
    master: str | None = None
    """Where the store's passphrase is: `file:PATH`, `env:NAME` or `fd:NUMBER`. Without it the node starts sealed."""
    reflection: bool = False
    """Whether gRPC server reflection is served."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")] = "auto"
    """Torch device of the models: `auto`, `cpu`, `cuda` or `cuda:N`."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Torch threads of one operation; 0 leaves torch's default."""
    arithmetic: Literal["fast", "exact"] = "fast"
    """`exact` gives the bits of the vendor's own sequence of operations; `fast` may differ in the last ones (W-58)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe event that is logged."""
    log_format: Literal["json", "console"] = "json"
    """One JSON object a line, or text for people."""
    limits: Limits = Limits()
    """The caps."""

    @field_validator("master")
    @classmethod
    def _master_is_a_source(cls, value: str | None) -> str | None:
        if value is not None and value.partition(":")[0] not in MASTER_SCHEMES:
            raise ValueError("must be file:PATH, env:NAME or fd:NUMBER, never the passphrase itself")
        return value

    @property
    def admin_path(self) -> Path:
        """Path of the operator's socket."""
        return self.admin_socket or self.directory / "admin.sock"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, then environment, then the TOML file that `load_settings` names."""
        del dotenv_settings, file_secret_settings
        if isinstance(env_settings, EnvSettingsSource):
            env_settings.env_vars = {
                name: value for name, value in env_settings.env_vars.items() if not _is_link(value or "")
            }
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(file: Path | None = None, **flags: Any) -> Settings:
    """Return the settings of `file` < environment < `flags` (a flag that is None is not given).

    Raises `NotFound` when `file` does not exist and `Malformed` naming each wrong key; values are never repeated.
    """
    if file is not None and not file.is_file():
        raise NotFound(f"no settings file at {file}", remedy="check the path given to --config")

    class FileSettings(Settings):
        """`Settings` bound to one file."""

        model_config = SettingsConfigDict(toml_file=file)

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        loaded = FileSettings(**given)
    except ValidationError as error:
        raise Malformed(_sentence(error), remedy="see docs for the settings' names and ranges") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise Malformed(f"settings file {file} is not valid TOML") from None
    except ValueError:
        # pydantic-settings raises its own ValueErrors for an environment value that should be JSON and is not.
        raise Malformed("an environment setting cannot be read; nested ones are spelled TESSERA_LIMITS__NAME") from None
    return Settings.model_construct(**{name: getattr(loaded, name) for name in Settings.model_fields})


def unknown_environment(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the names of `TESSERA_*` variables that name no setting; the server warns of them at its start.

    They are not refused, because other programs of ours read variables with the same prefix. A link to a Kubernetes
    Service names no setting either, though `TESSERA_PORT` may be its name.
    """
    known = {ENV_PREFIX + name.upper() for name in Settings.model_fields}
    known |= {f"{ENV_PREFIX}LIMITS__{name.upper()}" for name in Limits.model_fields}
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    return sorted(name for name, value in ours.items() if name.upper() not in known or _is_link(value))


def _is_link(value: str) -> bool:
    return value.startswith(LINK_SCHEMES)


def _sentence(error: ValidationError) -> str:
    faults = (
        f"{'.'.join(str(part) for part in fault['loc']) or 'settings'}: {fault['msg']}"
        for fault in error.errors(include_input=False, include_context=False, include_url=False)
    )
    return "wrong settings: " + "; ".join(faults)
