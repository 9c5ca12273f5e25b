"""Providers that a model's prefix may name: how they are spoken to, where, and with whose key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from router.settings_types import Wire


@dataclass(frozen=True, slots=True)
class ProviderHost:
    """A provider: how it is spoken to, where, and under which variable its key usually stands."""

    wire: Wire
    api_base: str | None
    key_env: str


def _openai_style(api_base: str, key_env: str) -> ProviderHost:
    return ProviderHost(Wire.OPENAI, api_base, key_env)


def _through_litellm(key_env: str) -> ProviderHost:
    return ProviderHost(Wire.LITELLM, None, key_env)


PROVIDERS: Mapping[str, ProviderHost] = {
    "openai": _openai_style("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "cerebras": _openai_style("https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    "deepinfra": _openai_style("https://api.deepinfra.com/v1/openai", "DEEPINFRA_API_KEY"),
    "deepseek": _openai_style("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "fireworks_ai": _openai_style("https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    "groq": _openai_style("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": _openai_style("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "moonshot": _openai_style("https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    "nebius": _openai_style("https://api.studio.nebius.ai/v1", "NEBIUS_API_KEY"),
    "novita": _openai_style("https://api.novita.ai/v3/openai", "NOVITA_API_KEY"),
    "openrouter": _openai_style("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "sambanova": _openai_style("https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    "together_ai": _openai_style("https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    "xai": _openai_style("https://api.x.ai/v1", "XAI_API_KEY"),
    "anthropic": _through_litellm("ANTHROPIC_API_KEY"),
    "azure": _through_litellm("AZURE_API_KEY"),
    "bedrock": _through_litellm("AWS_BEARER_TOKEN_BEDROCK"),
    "cohere": _through_litellm("COHERE_API_KEY"),
    "gemini": _through_litellm("GEMINI_API_KEY"),
    "perplexity": _through_litellm("PERPLEXITYAI_API_KEY"),
}
