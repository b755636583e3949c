"""Chat templates with the habits of published ones: clocks, thoughts, systems, history."""

TURN = "{{ '<' + turn['role'] + '>' + turn['content'] + '</s>\\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"

TEMPLATES = {
    # A date in the system's turn, unless the caller gives one.
    "dated": "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}"
    "{% endif %}{{ '<system>Today: ' + date_string + '</s>\\n' }}"
    "{% for turn in messages %}" + TURN + "{% endfor %}" + ASK,
    # The date by a macro, in a format that is put together.
    "dated_macro": "{% macro today(day) %}{{ strftime_now('%Y-%' + day) }}{% endmacro %}"
    "{{ '<system>' + today('j %H:%M') + '</s>\\n' }}"
    "{% for turn in messages %}" + TURN + "{% endfor %}" + ASK,
    # Thoughts are asked for, are not written, and can be switched off.
    "prefilled": "{% for turn in messages %}{% if turn['role'] == 'assistant' %}"
    "{{ '<assistant>' + turn['content'].split('</think>')[-1] + '</s>\\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant><think>\\n' }}{% endif %}",
    # An empty thought before the last answer; without thoughts, also where one is asked for.
    "thinking": "{% for turn in messages %}{% if turn['role'] == 'assistant' and loop.last %}"
    "{{ '<assistant><think>\\n\\n</think>\\n\\n' + turn['content'] + '</s>\\n' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<assistant>' }}{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}",
    # A channel that only an answer has, and another end of the last one.
    "channels": "{{ '<system>' + strftime_now('%Y-%m-%d') + '</s>\\n' }}{% for turn in messages %}"
    "{% if turn['role'] == 'assistant' %}{{ '<assistant><final>' + turn['content'] }}"
    "{{ '<return>' if loop.last else '</s>\\n' }}{% else %}"
    + TURN
    + "{% endif %}{% endfor %}"
    + ASK,
    "drawing": "{{ ['a', 'b'] | random }}{% for turn in messages %}" + TURN + "{% endfor %}" + ASK,
}
