"""Models of Hugging Face, read and written without `transformers` or `torch`.

| module | what it does |
|---|---|
| `model_folder` | reads config, weights and tokenizer of a folder or an hf:// repository |
| `shapes` | says which models have the shape of ours, and what does not fit in others |
| `weights` | turns the weights of such a model into parameters, and back |

The shape is that of Llama: RMSNorm before each part, rotary positions, a gated MLP, no biases. A
causal model of it is a LlamaForCausalLM, an encoder a EuroBertModel.
"""
