"""Chat templates of today's kinds, written small: what each does to thoughts, dates and system prompts."""

from __future__ import annotations

QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""The last answer is written behind an empty thought, and a question opens none."""
QWEN35 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ m.content.split('</think>')[-1] }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)
"""A question opens a thought, and answers are written without one."""
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
SMOLLM3 = (
    "{% set thinks = enable_thinking is not defined or enable_thinking %}"
    "<|im_start|>system\nToday: {{ date_string or strftime_now('%d %b %Y') }}\n"
    "{{ '/think' if thinks else '/no_think' }}\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}You are helpful.{% endif %}<|im_end|>\n"
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
    "{% elif m.role == 'assistant' %}<|im_start|>assistant\n{{ '' if thinks else '<think>\n\n</think>\n' }}"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ '' if thinks else '<think>\n\n</think>\n' }}{% endif %}"
)
"""A date, a default system prompt, and a thought that is closed at once where none is wanted."""
GPT_OSS = (
    "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>"
    "{% for m in messages %}{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""An answer stands in a channel that the model opens itself, and ends with a token of its own."""
TEMPLATES = {
    "Qwen3": QWEN3,
    "Qwen3.5": QWEN35,
    "DeepSeek-R1": DEEPSEEK_R1,
    "SmolLM3": SMOLLM3,
    "gpt-oss": GPT_OSS,
}
ENDS = {"DeepSeek-R1": "</s>", "gpt-oss": "<|return|>"}
"""What ends an answer; "<|im_end|>" in the others."""
MARKS = "<|im_start|> <|im_end|> <think> </think> <|User|> <|Assistant|> "
MARKS += "<|start|> <|end|> <|message|> <|channel|> <|return|>"
