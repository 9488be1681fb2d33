"""Settings of one coordinator: arguments over environment (`BITHAUL_*`) over a TOML file over defaults.

An unknown key in the file or in an argument is an error. Everything with a path is derived from
`directory`, the run's folder. What a run trains is not a setting: it is a row, made by `create_run`.
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from pathlib import Path

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from bithaul.coordinator.identity.names import TAKEN, is_for_people, is_name
from bithaul.coordinator.identity.transport import is_safe_url
from bithaul.errors import InvalidConfig

SECRET = "oidc_client_secret"  # noqa: S105 - its name
"""The one setting that is a secret. `database_url` can hold one too, but such a run has other backups."""

_SECRET_SET = re.compile(rf"""["']?{SECRET}["']?[\t ]*=""")
_SECRET_LINE = re.compile(rf"""[\t ]*#?[\t ]*{_SECRET_SET.pattern}""")
_LEFT_OUT = f"# {SECRET} is not in a backup: give it again."


class Settings(BaseSettings):
    """Seconds and bytes, unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="BITHAUL_", extra="forbid", frozen=True)

    directory: Path
    host: str = "127.0.0.1"
    port: int = Field(default=8817, ge=0, le=65_535)
    public_url: str = ""  # what workers dial; empty: http://host:port
    allow_insecure_lan: bool = False  # accept plain http on a private network: anyone on it can read secrets
    trusted_proxies: tuple[str, ...] = ()  # addresses or networks whose X-Forwarded-For is believed
    session_idle_seconds: float = Field(default=43_200.0, gt=0, le=7 * 86_400)
    session_days: float = Field(default=7.0, gt=0, le=30)
    oidc_issuer: str = ""  # a foreign OpenID provider that signs people in; empty: passwords, the own one
    oidc_client_id: str = ""
    oidc_client_secret: str = Field(
        default="", repr=False
    )  # empty: a public client, which proves its code by PKCE
    oidc_admins: dict[str, str] = {}  # name: "sub:..." or "email:..."
    oidc_ca_file: str = ""  # PEM, from `directory` on; who vouches for the provider's https. Empty: the usual
    database_url: str = ""  # empty: SQLite in `directory`

    worker_requests_per_minute: int = Field(default=3000, ge=60)  # of each worker; then 429 for a moment
    connections_per_address: int = Field(default=512, ge=16)  # open at once; proxies and this machine: any
    heartbeat_seconds: float = Field(default=10.0, gt=0)
    worker_gone_seconds: float = Field(default=60.0, gt=0)
    merge_interval: float = Field(default=0.2, gt=0)
    sweep_interval: float = Field(default=5.0, gt=0)
    prune_interval: float = Field(default=3600.0, gt=0)
    retention_interval: float = Field(default=60.0, gt=0)
    disk_interval: float = Field(default=30.0, gt=0)
    score_interval: float = Field(default=2.0, gt=0)

    telemetry_days: float = Field(default=7.0, gt=0)
    log_days: float = Field(default=3.0, gt=0)
    retention_keep: int = Field(default=4, ge=2)
    retention_every: int = Field(default=0, ge=0)  # also keep each Nth version; 0: none
    payload_keep_versions: int = Field(default=8, ge=0)  # merged updates stay so many versions longer
    inspection_keep: int = Field(default=4, ge=0)  # refused updates that are kept for a person to look at
    backup_folder: str = ""  # where backups are made by the clock; empty: none are
    backup_every_hours: float = Field(default=24.0, gt=0)
    backup_keep: int = Field(default=7, ge=1)
    disk_reserve_bytes: int = Field(default=256 * 2**20, ge=0)  # uploads are refused below this

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            ipaddress.ip_network(name)
        return value

    @model_validator(mode="after")
    def _backups(self) -> Settings:
        if self.backup_folder and not Path(self.backup_folder).is_absolute():
            raise ValueError("backup_folder must be a whole path, such as /media/disk/backups.")
        if self.backup_folder and self.database_url:
            raise ValueError("backup_folder is for SQLite; back database_url up with its own tools.")
        return self

    @model_validator(mode="after")
    def _foreign(self) -> Settings:
        """A foreign provider without a client or without anybody who may come would lock everybody out."""
        if self.oidc_issuer and not (self.oidc_client_id and self.oidc_admins):
            raise ValueError("oidc_issuer needs oidc_client_id and oidc_admins.")
        if self.oidc_issuer and not is_safe_url(self.oidc_issuer):
            raise ValueError("oidc_issuer must be an https URL.")
        for name, account in self.oidc_admins.items():
            kind, _, value = account.partition(":")
            if not is_name(name) or kind not in ("sub", "email") or not value:
                raise ValueError(
                    'oidc_admins has names (a-z, 0-9, ".", "_", "-") and "sub:..." or "email:...".'
                )
            if not is_for_people(name):
                raise ValueError(f"oidc_admins: the name {name!r} {TAKEN}.")
        return self

    @property
    def base_url(self) -> str:
        """The address workers dial, without a trailing slash."""
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.database_file.absolute().as_posix()}"

    @property
    def database_file(self) -> Path:
        """The SQLite file that is used without a `database_url`."""
        return self.directory / "coordinator.db"

    @property
    def blob_folder(self) -> Path:
        return self.directory / "blobs"

    @property
    def inspection_folder(self) -> Path:
        return self.directory / "inspection"

    @property
    def incoming_folder(self) -> Path:
        return self.directory / "incoming"

    @property
    def uploads_folder(self) -> Path:
        return self.directory / "uploads"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic's signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(directory: Path, *, config: Path | None = None, **overrides: object) -> Settings:
    """Settings for the run in `directory`. Raises `InvalidConfig` naming every bad key.

    `config` defaults to `directory/bithaul.toml`, which may be absent; overrides that are None do not count.
    """
    file = config or directory / "bithaul.toml"
    if config is not None and not config.is_file():
        raise InvalidConfig(f"There is no settings file {config}.")

    class WithFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return WithFile(directory=directory, **given)  # type: ignore[arg-type]  # checked by pydantic
    except tomllib.TOMLDecodeError as error:
        raise InvalidConfig(f"{file} is not valid TOML: {error}.") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise InvalidConfig(f"The coordinator's settings are not valid: {problems}.") from error


def without_secret(text: str, *, secret: str = "") -> str:
    """A settings file with a remark in place of its secret. Raises `InvalidConfig` when that cannot be.

    `secret`: the one in force, which may come from elsewhere. Neither it nor the file's own may be left in a
    remark, nor anything that a remark gives the secret's name.
    """
    left = "\n".join(_LEFT_OUT if _SECRET_LINE.match(line) else line for line in text.split("\n"))
    try:
        given = tomllib.loads(text)
        known = {secret, str(given.pop(SECRET, ""))} - {""}
        told = _SECRET_SET.search(left) is not None or any(value in left for value in known)
        if tomllib.loads(left) == given and not told:
            return left
    except tomllib.TOMLDecodeError:
        pass
    raise InvalidConfig(
        f"{SECRET} cannot be left out of the backup: write it in one line of its own in bithaul.toml and "
        f"nowhere else in it, or give it as BITHAUL_{SECRET.upper()} instead."
    )


def lacks_secret(text: str) -> bool:
    """Whether a settings file comes from a backup that left its secret out, and has not got it again."""
    return _LEFT_OUT in text.split("\n") and SECRET not in tomllib.loads(text)
