"""The report's page as a jinja2 template. All values are escaped but the SVG that is drawn of grids."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; color: #1a1a1a; background: #fff; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { margin: .2rem 0; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 .5rem; font-size: 1.25rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
h3 { margin: 1.2rem 0 .3rem; font-size: 1rem; }
nav { font-size: .9rem; margin: .8rem 0; }
nav a { margin-right: .9rem; white-space: nowrap; }
a { color: #0b57a4; }
.lead { color: #444; }
.note { background: #fdf6e3; border-left: 4px solid #d9a400; padding: .6rem .9rem; margin: .8rem 0; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #e3e3e3; text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; background: #f6f6f6; white-space: normal; min-width: 4.5rem; }
th.text, td.text { text-align: left; white-space: nowrap; }
td:first-child, th:first-child { position: sticky; left: 0; background: #fff; }
th:first-child { background: #f6f6f6; }
td.words { text-align: left; white-space: normal; }
td small { color: #666; display: block; }
.dot { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em; }
figure { margin: .8rem 0; }
figure img { width: 100%; min-width: 44rem; display: block; }
figcaption { color: #555; font-size: .88rem; margin-top: .3rem; }
.task { display: flex; flex-wrap: wrap; gap: .9rem; margin: .3rem 0 1rem; }
.task div { width: 132px; font-size: .8rem; line-height: 1.3; }
.task b { display: block; }
.said dt { font-size: .8rem; font-weight: 600; margin-top: .4rem; }
.said dd { margin: 0; font-family: monospace; font-size: .82rem; white-space: pre-wrap; background: #f6f6f6;
  padding: .3rem .5rem; }
.grid { display: block; margin-top: .2rem; }
.nothing { display: block; width: 128px; height: 64px; border: 1px dashed #999; margin-top: .2rem; }
"""

# A whole document that loads nothing: its style and pictures are in it, and scripts are forbidden.
TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for word, text in about %}
<p>{% if word %}<b>{{ word }}</b>: {% endif %}{{ text }}</p>
{% endfor %}
<p class="lead">{{ headline }}</p>
{% if sections %}
<nav>{% for each in sections %}<a href="#{{ each.anchor }}">{{ each.title }}</a>{% endfor %}</nav>
{% endif %}
{% for text in notes %}
<p class="note">{{ text }}</p>
{% endfor %}
{% for section in sections %}
<h2 id="{{ section.anchor }}">{{ section.title }}</h2>
{% for part in section.parts %}
{% if part.kind == "text" %}
<p>{{ part.value }}</p>
{% elif part.kind == "note" %}
<p class="note">{{ part.value }}</p>
{% elif part.kind == "table" %}
<div class="scroll"><table>
<tr>{% for name in part.value.head %}<th{% if loop.index0 < part.value.names %} class="text"{% endif %}>{{ name }}</th>
{%- endfor %}</tr>
{% for row in part.value.rows %}
<tr>{% for cell in row %}<td{% if loop.index0 < part.value.names %} class="text"{% endif %}>
{%- if cell.colour %}<span class="dot" style="background:{{ cell.colour }}"></span>{% endif %}
{%- if cell.best %}<b>{{ cell.text }}</b>{% else %}{{ cell.text }}{% endif %}
{%- for small in cell.small %}<small>{{ small }}</small>{% endfor %}</td>
{%- endfor %}</tr>
{% endfor %}
</table></div>
{% elif part.kind == "picture" %}
<figure><div class="scroll">
<img alt="{{ part.value.alt }}" src="data:image/{{ part.value.kind }};base64,{{ part.value.data }}">
</div>
<figcaption>{{ part.value.caption }}</figcaption></figure>
{% elif part.kind == "samples" %}
{% for sample in part.value %}
<h3>{{ sample.title }}</h3><dl class="said">
{% for each in sample.texts %}
<dt>{{ each.name }}</dt><dd>{{ each.text }}</dd>
{% endfor %}
</dl>
{% endfor %}
{% elif part.kind == "tasks" %}
{% for task in part.value %}
<h3>{{ task.title }}</h3><div class="task">
{% for drawing in task.drawings %}
<div><b>{{ drawing.name }}</b>{{ drawing.verdict or "\u00a0" }}
{%- if drawing.grid is none %}<span class="nothing"></span>{% else %}{{ drawing.grid | safe }}{% endif %}</div>
{% endfor %}
</div>
{% endfor %}
{% endif %}
{% endfor %}
{% endfor %}
{% if missing %}
<p class="lead">{{ missing }}</p>
{% endif %}
</body>
</html>
"""
