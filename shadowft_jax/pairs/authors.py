"""AUTHORS: the pairs of the paper's tables and of the authors' list, with their actual Hub ids.

Source: arXiv 2505.12716, tables 1 to 6; wutaiqiang/Shadow-FT, examples/model_pair.json (some of its
ids do not exist) and run.sh (the template of each Base).
"""

from shadowft_jax.pairs.pair import Pair

AUTHORS = {
  "llama-3.2-1b": Pair(
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.2-1B-Instruct",
    "llama",
    "llama3",
    "tied embeddings",
  ),
  "llama-3.2-3b": Pair(
    "meta-llama/Llama-3.2-3B",
    "meta-llama/Llama-3.2-3B-Instruct",
    "llama",
    "llama3",
    "tied embeddings",
  ),
  "llama-3.1-8b": Pair(
    "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", "llama", "llama3"
  ),
  "qwen3-0.6b": Pair(
    "Qwen/Qwen3-0.6B-Base", "Qwen/Qwen3-0.6B", "qwen3", "qwen3", "tied embeddings"
  ),
  "qwen3-1.7b": Pair(
    "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-1.7B", "qwen3", "qwen3", "tied embeddings"
  ),
  "qwen3-4b": Pair("Qwen/Qwen3-4B-Base", "Qwen/Qwen3-4B", "qwen3", "qwen3", "tied embeddings"),
  "qwen3-4b-2507": Pair(
    "Qwen/Qwen3-4B-Base",
    "Qwen/Qwen3-4B-Instruct-2507",
    "qwen3",
    "qwen3",
    "tied embeddings; rope_theta 1e6 against 5e6",
  ),
  "qwen3-8b": Pair("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-8B", "qwen3", "qwen3"),
  "qwen3-14b": Pair("Qwen/Qwen3-14B-Base", "Qwen/Qwen3-14B", "qwen3", "qwen3"),
  "qwen3-30b-a3b": Pair("Qwen/Qwen3-30B-A3B-Base", "Qwen/Qwen3-30B-A3B", "qwen3_moe", "qwen3"),
  "qwen2.5-7b": Pair(
    "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct", "qwen2", "qwen", "the authors wrote -Chat"
  ),
  "qwen2.5-14b": Pair(
    "Qwen/Qwen2.5-14B",
    "Qwen/Qwen2.5-14B-Instruct",
    "qwen2",
    "qwen",
    "rms_norm_eps 1e-5 against 1e-6",
  ),
  "qwen2.5-32b": Pair(
    "Qwen/Qwen2.5-32B",
    "Qwen/Qwen2.5-32B-Instruct",
    "qwen2",
    "qwen",
    "rms_norm_eps 1e-5 against 1e-6; the authors wrote -Chat",
  ),
  "falcon3-1b": Pair(
    "tiiuae/Falcon3-1B-Base",
    "tiiuae/Falcon3-1B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-1b",
  ),
  "falcon3-3b": Pair(
    "tiiuae/Falcon3-3B-Base",
    "tiiuae/Falcon3-3B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-3b",
  ),
  "falcon3-7b": Pair(
    "tiiuae/Falcon3-7B-Base",
    "tiiuae/Falcon3-7B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-7b, another model",
  ),
  "falcon3-10b": Pair(
    "tiiuae/Falcon3-10B-Base",
    "tiiuae/Falcon3-10B-Instruct",
    "llama",
    "falcon",
    "head_dim 256; the authors wrote falcon-10b",
  ),
  "gemma-2-2b": Pair(
    "google/gemma-2-2b", "google/gemma-2-2b-it", "gemma2", "gemma", "tied embeddings"
  ),
  "gemma-2-9b": Pair(
    "google/gemma-2-9b", "google/gemma-2-9b-it", "gemma2", "gemma", "tied embeddings"
  ),
  "gemma-3-1b": Pair(
    "google/gemma-3-1b-pt",
    "google/gemma-3-1b-it",
    "gemma3_text",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-1b",
  ),
  "gemma-3-4b": Pair(
    "google/gemma-3-4b-pt",
    "google/gemma-3-4b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-4b",
  ),
  "gemma-3-12b": Pair(
    "google/gemma-3-12b-pt",
    "google/gemma-3-12b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-12b",
  ),
  "gemma-3-27b": Pair(
    "google/gemma-3-27b-pt",
    "google/gemma-3-27b-it",
    "gemma3",
    "gemma",
    "tied embeddings; the authors wrote gemma-3-27b",
  ),
  "llama-3.2-11b-vision": Pair(
    "meta-llama/Llama-3.2-11B-Vision",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "mllama",
    "mllama",
    "image size 448 against 560",
  ),
  "llama-3.2-90b-vision": Pair(
    "meta-llama/Llama-3.2-90B-Vision",
    "meta-llama/Llama-3.2-90B-Vision-Instruct",
    "mllama",
    "mllama",
    "image size 448 against 560",
  ),
  "mistral-7b": Pair(
    "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistral", "mistral"
  ),
  "yi-6b": Pair("01-ai/Yi-6B", "01-ai/Yi-6B-Chat", "llama", "yi"),
  "yi-coder-1.5b": Pair("01-ai/Yi-Coder-1.5B", "01-ai/Yi-Coder-1.5B-Chat", "llama", "yi"),
  "yi-coder-9b": Pair("01-ai/Yi-Coder-9B", "01-ai/Yi-Coder-9B-Chat", "llama", "yi"),
  "seed-coder-8b": Pair(
    "ByteDance-Seed/Seed-Coder-8B-Base", "ByteDance-Seed/Seed-Coder-8B-Instruct", "llama", None
  ),
  "baichuan2-7b": Pair(
    "baichuan-inc/Baichuan2-7B-Base",
    "baichuan-inc/Baichuan2-7B-Chat",
    "baichuan",
    "baichuan2",
    "pickle weights only; the authors wrote Baichuan2-7B",
  ),
  "internlm2-1.8b": Pair(
    "internlm/internlm2-1_8b",
    "internlm/internlm2-chat-1_8b",
    "internlm2",
    "intern2",
    "the authors wrote internlm2-1_8b-chat",
  ),
  "internlm2-7b": Pair(
    "internlm/internlm2-7b",
    "internlm/internlm2-chat-7b",
    "internlm2",
    "intern2",
    "the authors wrote internlm2-7b-chat",
  ),
  "internlm2.5-1.8b": Pair(
    "internlm/internlm2_5-1_8b", "internlm/internlm2_5-1_8b-chat", "internlm2", "intern2"
  ),
  "internlm2.5-7b": Pair(
    "internlm/internlm2_5-7b", "internlm/internlm2_5-7b-chat", "internlm2", "intern2"
  ),
  "internlm2.5-20b": Pair(
    "internlm/internlm2_5-20b", "internlm/internlm2_5-20b-chat", "internlm2", "intern2"
  ),
  "glm-4-32b-0414": Pair(
    "THUDM/GLM-4-32B-Base-0414",
    "THUDM/GLM-4-32B-0414",
    "glm4",
    None,
    "fused gate_up_proj; also under zai-org; the authors wrote glm-4-32b",
  ),
}
