"""Reports of a result: terminal tables, figures, one self-contained HTML page."""

from latprune.report.data import ReportData, compute_report
from latprune.report.html import html_page, write_html
from latprune.report.terminal import print_summary, summary_text

__all__ = ["ReportData", "compute_report", "html_page", "print_summary", "summary_text", "write_html"]
