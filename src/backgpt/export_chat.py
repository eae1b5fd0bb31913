"""The chat template of an exported folder, in Jinja, for `transformers` to render."""

from backgpt.order import Directions

CHAT_TEMPLATE = "chat_template.jinja"

_CHECK = """\
{%- for message in messages -%}
{%- if message.role not in ['user', 'assistant', 'system'] -%}
{{- raise_exception('role = ' + message.role + ': it must be user, assistant or system') -}}
{%- endif -%}
{%- endfor -%}
"""

_CLEANED = r" | replace('\r\n', '\n') | trim"
_SAID = "{{- '<|' + message.role + '|>' + message.content" + _CLEANED + " -}}"


def chat_template(direction: Directions) -> str:
    """Return the Jinja template of a chat model, which renders conversations in reading order.

    The `{% generation %}` marks hold what the model writes of a conversation, as it was trained:
    all but the message that it meets first.
    """
    if direction == "forward":
        return _CHECK + _forward_chat("")
    if direction == "backward":
        return _CHECK + _backward_chat("")
    return (
        _CHECK
        + "{%- if direction | default('backward') == 'forward' -%}\n"
        + _forward_chat("<|forward|>")
        + "{%- else -%}\n"
        + _backward_chat("<|backward|>")
        + "{%- endif -%}\n"
    )


def _backward_chat(lead: str) -> str:
    """Return the template for the way back: the last message is met first."""
    return f"""\
{{#- Reading order: turn the ids around, all of them, before the model reads them. -#}}
{{%- set last = messages[-1:] -%}}
{{%- if add_generation_prompt -%}}
{{%- set last = messages -%}}
{{%- elif messages | length > 1 -%}}
{{%- generation -%}}
{{{{- '<|start|>' -}}}}
{{%- for message in messages[:-1] -%}}
{_SAID}
{{%- endfor -%}}
{{%- endgeneration -%}}
{{%- else -%}}
{{{{- '<|start|>' -}}}}
{{%- endif -%}}
{{%- for message in last -%}}
{_SAID}
{{%- endfor -%}}
{{{{- '<|end|>{lead}' -}}}}
"""


def _forward_chat(lead: str) -> str:
    """Return the template for the way forward: the first message is met first."""
    return f"""\
{{{{- '{lead}<|start|>' -}}}}
{{%- for message in messages[:1] -%}}
{_SAID}
{{%- endfor -%}}
{{%- if messages | length > 1 -%}}
{{{{- '<|' + messages[1].role + '|>' -}}}}
{{%- generation -%}}
{{{{- messages[1].content{_CLEANED} -}}}}
{{%- for message in messages[2:] -%}}
{_SAID}
{{%- endfor -%}}
{{%- if not add_generation_prompt -%}}
{{{{- '<|end|>' -}}}}
{{%- endif -%}}
{{%- endgeneration -%}}
{{%- elif not add_generation_prompt -%}}
{{{{- '<|end|>' -}}}}
{{%- endif -%}}
{{%- if add_generation_prompt -%}}
{{{{- '<|assistant|>' -}}}}
{{%- endif -%}}
"""
