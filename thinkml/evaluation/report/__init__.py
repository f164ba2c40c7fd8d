"""Reports: a written evaluation, as text, Markdown, a web page or data."""

from thinkml.evaluation.report.report import Report as Report
