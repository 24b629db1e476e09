"""The sampler for a cluster that serves models: any server with OpenAI's /v1/completions (vLLM, SGLang, trtllm-serve,
NIM).

Prompts go as token ids, one request a completion with its own seed. Servers of `sampler.server.base_urls` must serve
M_t already; with `sampler.server.command` a server is started here for the stage and ended with it.
"""

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from irpo_nemo.config import IRPOConfig
from irpo_nemo.errors import ConfigError, MachineError
from irpo_nemo.run_folder import RunFolder
from irpo_nemo.sampling.background import BackgroundLoop
from irpo_nemo.sampling.dialects import DIALECTS, Dialect
from irpo_nemo.sampling.endings import read_stop_ids
from irpo_nemo.sampling.ordering import complete_all
from irpo_nemo.sampling.sampler import Completion, SamplingRequest
from irpo_nemo.sampling.server_process import start_server
from irpo_nemo.tokenization import load_tokenizer

try:
    from irpo_nemo.sampling.server_pool import RequestFailed, Server, ServerPool
except ModuleNotFoundError as error:
    raise MachineError(f"sampler.name=openai_server: {error}. Run pip install 'irpo-nemo[server]'.") from error

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def open_sampler(config: IRPOConfig, model_folder: Path) -> "OpenAIServerSampler":
    """Find the servers, or start one, and learn how they want to be asked.

    Raises:
        ConfigError: A server does not serve this model, or gives no token ids.
        MachineError: A server does not answer, or does not start.
        ModelError: The folder has no tokenizer.
    """
    tokenizer = load_tokenizer(model_folder, trust_remote_code=config.model.trust_remote_code)
    return OpenAIServerSampler(config, model_folder, tokenizer)


class OpenAIServerSampler:
    """Asks servers for completions, many at once."""

    honours_seeds = False
    """Some servers do; none says so."""

    def __init__(self, config: IRPOConfig, model_folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._stop_ids = read_stop_ids(model_folder, tokenizer)
        self._model_folder = model_folder
        self._config = config.sampler.server
        with ExitStack() as stack:
            base_urls = self._config.base_urls
            if self._config.command:
                log = RunFolder(config.run_folder).log("server")
                base_urls = [stack.enter_context(start_server(self._config, model_folder, log=log))]
            self.window = config.sampler.batch_size * len(base_urls)
            self._loop = BackgroundLoop("openai_server")
            stack.callback(self._loop.close)
            self._pool = self._loop.run(self._open_pool(base_urls))
            stack.callback(lambda: self._loop.run(self._pool.close()))
            self._model, self._dialect = self._loop.run(self._agree())
            stack.enter_context(_spare_collector())
            self._resources = stack.pop_all()
        logger.info(
            "%s: %s serves %s, asked with %s",
            ", ".join(base_urls),
            "one server" if len(base_urls) == 1 else f"{len(base_urls)} servers",
            self._model,
            self._dialect.name,
        )

    def generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        """Draw one completion for each request, in their order; see `Sampler`."""
        return self._loop.run(self._generate(requests))

    def close(self) -> None:
        """Close the connections, and end the server if it was started here."""
        self._resources.close()

    async def _open_pool(self, base_urls: list[str]) -> ServerPool:
        api_key = os.environ.get(self._config.api_key_variable)
        return ServerPool(base_urls, config=self._config, api_key=api_key, in_flight=self.window)

    async def _generate(self, requests: Sequence[SamplingRequest]) -> list[Completion]:
        homes: dict[str, Server] = {}
        return await complete_all(requests, lambda request: self._complete(request, homes), window=self.window)

    async def _complete(self, request: SamplingRequest, homes: "dict[str, Server]") -> Completion:
        body = self._body(request)
        try:
            choice = await self._pool.complete(body, homes, request.problem_id)
        except RequestFailed as failure:
            return Completion.failed(str(failure))
        return self._dialect.read(choice, request, stop_ids=self._stop_ids, tokenizer=self._tokenizer)

    def _body(self, request: SamplingRequest) -> dict[str, Any]:
        return self._dialect.body(request, model=self._model, stop_ids=self._stop_ids, tokenizer=self._tokenizer)

    async def _agree(self) -> tuple[str, Dialect]:
        """The model's name and the dialect, the same on all servers.

        Raises:
            ConfigError: They differ, or none will do.
        """
        found = [await self._agree_with(server) for server in self._pool.servers]
        if any(other != found[0] for other in found):
            names = "; ".join(
                f"{server.url} serves {model}, asked with {dialect.name}"
                for server, (model, dialect) in zip(self._pool.servers, found, strict=True)
            )
            raise ConfigError(f"sampler.server.base_urls: the servers differ: {names}. Name servers of one kind.")
        return found[0]

    async def _agree_with(self, server: "Server") -> tuple[str, Dialect]:
        model = self._choose_model(server, await self._pool.list_models(server))
        dialects = [dialect for dialect in DIALECTS if dialect.gives_ids or self._config.retokenize]
        refusals = []
        for dialect in dialects:
            probe = dialect.body(self._probe(), model=model, stop_ids=self._stop_ids, tokenizer=self._tokenizer)
            try:
                answer = await self._pool.probe(server, probe)
            except RequestFailed as failure:
                refusals.append(f"{dialect.name}: {failure}")
                continue
            choices = answer.get("choices") or [{}]
            if dialect.understands(choices[0]):
                return model, dialect
            refusals.append(f"{dialect.name}: the answer has none")
        raise ConfigError(
            f"{server.url}: gives no token ids ({'; '.join(refusals)}). Use a newer vLLM or SGLang, or trtllm-serve "
            f"1.2, or set sampler.server.retokenize=true to encode its text again."
        )

    def _choose_model(self, server: "Server", cards: list[dict[str, Any]]) -> str:
        """The name under which the server serves M_t."""
        if self._config.model is not None:
            return self._config.model
        if self._config.command and len(cards) == 1:
            return str(cards[0]["id"])
        wanted = self._model_folder.resolve()
        for card in cards:
            if any(_is_path(name, wanted) for name in (card.get("root"), card.get("id"))):
                return str(card["id"])
        served = ", ".join(str(card.get("root") or card.get("id")) for card in cards) or "nothing"
        raise ConfigError(
            f"{server.url}: serves {served}, but this iteration samples from {wanted}. Start the server with that "
            f"folder, or set sampler.server.command so that each iteration starts its own."
        )

    def _probe(self) -> SamplingRequest:
        """A short request that any model can answer."""
        return SamplingRequest(
            candidate_id="probe",
            problem_id="probe",
            kind="greedy",
            index=0,
            prompt_token_ids=[self._tokenizer.bos_token_id or self._tokenizer.eos_token_id],
            temperature=0.0,
            top_p=1.0,
            max_new_tokens=1,
            seed=0,
        )


@contextmanager
def _spare_collector() -> Iterator[None]:
    """Keep what libraries hold out of garbage collection, which takes a third of the client's time otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _is_path(name: object, wanted: Path) -> bool:
    return isinstance(name, str) and Path(name).is_absolute() and Path(name).resolve() == wanted
