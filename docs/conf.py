"""Sphinx reads the pages that docs/pages.py writes to _proc/; the outputs are those stored in the notebooks."""

from configparser import ConfigParser
from pathlib import Path

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here.parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

project, author, release = cfg["title"], cfg["author"], cfg["version"]
copyright = cfg["copyright"]
extensions = ["myst_nb", "sphinxcontrib.bibtex", "sphinx_copybutton", "sphinx-mathjax-offline"]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"

add_module_names = False
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

bibtex_bibfiles = ["../docs/references.bib"]
bibtex_default_style = "plain"

html_theme = "sphinx_book_theme"
html_title = project
html_baseurl = f"https://{cfg['user']}.github.io/{cfg['repo']}/"
html_static_path = [str(here / "static")]
html_css_files = ["liverdis.css"]
html_extra_path = [str(here.parent / "_proc/extra")]
html_favicon = str(here / "static/favicon.svg")
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "repository_url": cfg["git_url"],
    "use_repository_button": True,
    "use_download_button": False,
    "use_issues_button": True,
    "navbar_persistent": [],
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "extra_footer": "<p><strong>Research use only. Not a medical device.</strong></p>",
}
