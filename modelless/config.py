"""Configuration: ``modelless.toml``, read once, frozen.

Every value may be overridden by the environment, ``MODELLESS_SECTION__FIELD`` (for example
``MODELLESS_KAFKA__BOOTSTRAP_SERVERS``). An unknown or unparsable value stops the process with the field's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from modelless.errors import ConfigurationError

DEFAULT_FILE = Path("modelless.toml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaConfig(_Section):
    bootstrap_servers: str | None = Field(None, description="host:port,… of the cluster; absent: the embedded one.")
    topic_prefix: str = Field("modelless", description="First part of every topic's name.")
    partitions: int = Field(4, ge=1, description="Partitions of query and reply topics when they are created.")
    replication_factor: int = Field(1, ge=1, description="Of topics when they are created.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the cluster."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field("PLAIN", description="With SASL_*.")
    sasl_username: str | None = Field(None, description="With SASL_*.")
    sasl_password_file: Path | None = Field(None, description="File that holds the password, with SASL_*.")
    ssl_ca_file: Path | None = Field(None, description="PEM of the authority that signed the brokers' certificates.")
    ssl_certificate_file: Path | None = Field(None, description="PEM of our own certificate, for mutual TLS.")
    ssl_key_file: Path | None = Field(None, description="PEM of our own key, for mutual TLS.")
    embedded_port: int = Field(9092, ge=1, le=65535, description="Port of the embedded Kafka.")
    embedded_data: Path = Field(Path(".modelless/kafka"), description="Folder of the embedded Kafka's logs.")
    embedded_heap_mb: int = Field(512, ge=128, description="Java heap of the embedded Kafka.")
    request_bytes_max: int = Field(8 * 1024 * 1024, ge=1024, description="Largest record that we write or read.")

    @property
    def servers(self) -> str:
        """The configured address, or the embedded node's."""
        return self.bootstrap_servers or f"127.0.0.1:{self.embedded_port}"


class BrokerConfig(_Section):
    brokers: int = Field(1, ge=0, description="Broker processes that `modelless up` runs.")
    topics: tuple[str, ...] = Field(
        (), description="More query topics to serve, besides <prefix>.queries and <prefix>.queries.*."
    )
    topic_weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {}, description="Of query topics that compete for devices: the parts of their time that they get; else 1."
    )
    tenant_topics: tuple[str, ...] = Field((), description="Query topics whose queries may name a tenant.")
    quotas: dict[Annotated[str, Field(pattern=r"^\S{1,256}$")], Annotated[float, Field(gt=0, allow_inf_nan=False)]] = (
        Field({}, description="USD per hour that a tenant (a query topic, or the name in queries) may use; else any.")
    )
    quota_burst_s: float = Field(10, gt=0, description="A quota that was not used is kept for so long.")
    reply_topics_allowed: tuple[str, ...] = Field(
        (), description="Reply topics besides <prefix>.replies and <prefix>.replies.*; a trailing * is a prefix."
    )
    latency_ms_default: float = Field(30_000, gt=0, description="For queries that state no latency and no deadline.")
    accuracy_slack: float = Field(
        0.02, ge=0, le=1, description="Default accuracy_min of a task: its best variant's accuracy minus this."
    )
    in_flight_max: int = Field(20_000, ge=1, description="Queries held by one broker before it pauses reading.")
    memory_mb_max: int = Field(256, ge=16, description="Bytes of queries held by one broker before it pauses reading.")
    profile_age_s_max: float = Field(0, ge=0, description="A profile that is older is measured again; 0: never.")
    attempts_max: int = Field(3, ge=1, description="Losses of a whole worker after which a query is given up.")
    hedge_share_max: float = Field(
        0.01, ge=0, le=1, description="Of the queries, how many may go to a second worker while one straggles; 0: off."
    )
    commit_interval_ms: float = Field(50, gt=0, description="Longest time between a finished query and its commit.")
    usage_period_s: float = Field(60, ge=1, le=300, description="How long a period of <prefix>.usage is.")
    session_timeout_ms: int = Field(10_000, ge=1000, description="Kafka notices a dead broker after this.")
    drain_s: float = Field(20, gt=0, description="On SIGTERM: longest wait for unfinished queries.")


class PlannerConfig(_Section):
    scale_down_s: float = Field(60, gt=0, description="So long less must be needed before a worker is ended.")
    idle_s: float = Field(300, gt=0, description="What nobody has asked for in so long needs no worker.")
    missed_max: float = Field(
        0.002, gt=0, lt=1, description="Spare capacity for bursts: at most such a share of the work may find none left."
    )
    utilisation_max: float = Field(
        0.9, gt=0, le=1, description="Share of a worker's time that is planned, beside that spare capacity."
    )


class WorkerConfig(_Section):
    drain_s: float = Field(20, gt=0, description="On SIGTERM: longest wait for what runs and is queued.")
    lead_ms: float = Field(1.0, gt=0, description="Work kept waiting at the device so that it never idles.")
    hang_s: float = Field(
        20, gt=0, description="A batch that runs longer than this and 20 times its profile: the child is killed."
    )
    measure_s: float = Field(
        5, gt=0, description="Time budget for measuring one variant: latencies and accuracy, not building and loading."
    )
    build_s_max: float = Field(600, gt=0, description="A variant whose building takes longer has failed.")
    batch_size_max: int = Field(128, ge=1, description="Largest batch that is profiled.")
    factories_allowed: tuple[str, ...] = Field(
        (), description="Modules whose factories may build safetensors models; a trailing * is a prefix."
    )
    builders: tuple[str, ...] = Field((), description="Builders that may make variants; none: all that can work.")


class ProvisionerConfig(_Section):
    kind: Literal["local", "ray", "kubernetes"] = Field(
        "local", description="Where workers are started: processes of this machine, Ray, or Kubernetes."
    )
    ray_address: str = Field("auto", description="Of the Ray cluster: host:port, or auto for this machine's.")
    ray_namespace: str | None = Field(None, description="Ours in the Ray cluster; absent: kafka.topic_prefix.")
    kubernetes_namespace: str | None = Field(
        None, description="Of the Deployments; absent: the pod's own, or the context's, or default."
    )
    kubernetes_config: Path | None = Field(
        None, description="kubeconfig, with its current context; absent: the pod's own rights, or the user's."
    )
    kubernetes_deployment: str = Field(
        "modelless-worker-{group}", description="Name of a group's Deployment, with {group} in it."
    )

    @field_validator("kubernetes_deployment")
    @classmethod
    def _deployment(cls, value: str) -> str:
        if value.count("{group}") != 1:
            raise ValueError('must have {group} in it, as "modelless-worker-{group}" does')
        return value


class LinkConfig(_Section):
    listen: str = Field("unix", description='"unix" (a socket with owner-only rights) or host:port.')
    advertise: str | None = Field(None, description="host:port that workers dial, when it differs from listen.")
    ca_file: Path | None = Field(None, description="PEM of the authority of both sides; required off loopback.")
    certificate_file: Path | None = Field(None, description="PEM of our certificate; required off loopback.")
    key_file: Path | None = Field(None, description="PEM of our key; required off loopback.")


class StoreConfig(_Section):
    url: str = Field(".modelless/store", description="Where artifacts are kept: any fsspec address.")
    cache: Path = Field(Path(".modelless/cache"), description="Local copies by digest.")


class MetricsConfig(_Section):
    host: str = Field("127.0.0.1", description="Where Prometheus endpoints listen.")
    port: int = Field(
        9464, ge=0, le=65000, description="broker-N listens on port + N, worker N of all on port + 100 + N; 0: off."
    )


class LogConfig(_Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe line that is written."
    )
    format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON.")


class GroupConfig(_Section):
    name: str = Field(description="The group's name, unique.")
    device: str = Field("cpu", description="cpu, cuda:N or emulated.")
    threads: int = Field(1, ge=1, description="Threads that one worker's executor may use.")
    workers: int = Field(1, ge=0, description="Workers that are run, where their number is fixed.")
    workers_min: int = Field(1, ge=0, description="With workers_max: as few as this; 0: none while nobody asks.")
    workers_max: int | None = Field(
        None, ge=1, description="The planner chooses how many workers are run, at most so many; absent: workers."
    )
    memory_mb_max: int = Field(2048, ge=64, description="Memory for loaded variants of one worker.")
    price_per_hour: float = Field(0.0, ge=0, description="USD for one worker.")
    builders: tuple[str, ...] = Field((), description="Of those of worker.builders; none: all of them.")
    ray_resources: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Of one worker on Ray, besides its threads as CPUs and, of a cuda group, a GPU."
    )

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> GroupConfig:
        if self.workers_max is None and self.workers_min != 1:
            raise ValueError(f"group {self.name}: workers_min needs workers_max; a fixed number is workers")
        if self.workers_max is not None and self.workers != 1:
            raise ValueError(f"group {self.name}: give either workers or workers_max")
        if self.workers_max is not None and self.workers_min > self.workers_max:
            raise ValueError(f"group {self.name}: workers_min is larger than workers_max")
        return self

    @property
    def scales(self) -> bool:
        """The planner chooses the number of workers."""
        return self.workers_max is not None

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|emulated|cuda:\d+", value):
            raise ValueError('must be "cpu", "cuda:N" or "emulated"')
        return value


class Config(BaseSettings):
    """The whole configuration; each section's class says what its fields mean."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="MODELLESS_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )
    toml_file: ClassVar[Path | None] = None

    kafka: KafkaConfig = KafkaConfig()
    broker: BrokerConfig = BrokerConfig()
    planner: PlannerConfig = PlannerConfig()
    worker: WorkerConfig = WorkerConfig()
    provisioner: ProvisionerConfig = ProvisionerConfig()
    link: LinkConfig = LinkConfig()
    store: StoreConfig = StoreConfig()
    metrics: MetricsConfig = MetricsConfig()
    log: LogConfig = LogConfig()
    groups: tuple[GroupConfig, ...] = (GroupConfig(name="cpu"),)
    state: Path = Field(Path(".modelless"), description="Folder for sockets and other run-time files.")

    @model_validator(mode="after")
    def _unique_groups(self) -> Config:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise ValueError("groups: every name must be unique")
        return self

    def group(self, name: str) -> GroupConfig:
        """Raises ConfigurationError when there is no such group."""
        for group in self.groups:
            if group.name == name:
                return group
        raise ConfigurationError(f"no group {name!r}; configured are: {', '.join(g.name for g in self.groups)}")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.toml_file)


def load_config(file: Path | None = None, **sections: Any) -> Config:
    """Read ``file`` (default: ``modelless.toml`` here, if there is one), the environment, and ``sections`` on top.

    Raises:
        ConfigurationError: names the field, what it got and what is expected.
    """
    if file is not None and not file.is_file():
        raise ConfigurationError(f"no configuration file {str(file)!r}")
    chosen = file or (DEFAULT_FILE if DEFAULT_FILE.is_file() else None)
    reader = type("Config", (Config,), {"toml_file": chosen, "__module__": __name__})
    try:
        loaded: Config = reader(**sections)
    except ValidationError as error:
        lines = [
            f"{'.'.join(str(part) for part in item['loc']) or 'configuration'}: {item['msg']}"
            for item in error.errors()
        ]
        where = f" in {chosen}" if chosen else ""
        raise ConfigurationError(f"configuration{where}: " + "; ".join(lines)) from None
    except ValueError as error:  # not TOML at all
        raise ConfigurationError(f"configuration {chosen}: {error}") from None
    return loaded
