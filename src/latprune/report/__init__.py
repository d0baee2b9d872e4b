"""Reports of a result: terminal tables, figures, one self-contained HTML page."""

from latprune.report.data import ReportData, compute_report
from latprune.report.explorer import explorer_page, write_explorer
from latprune.report.figures import (
    FrontierCurve,
    TradeOffPoint,
    compute_frontier,
    figure_kind,
    new_figure,
    plot_frontier,
    plot_latency,
    plot_result,
    plot_trade_off,
    plot_widths,
    save_figure,
)
from latprune.report.html import html_page, write_html
from latprune.report.notebook import graph_html, result_html, tables_html
from latprune.report.terminal import print_summary, summary_text

__all__ = [
    "FrontierCurve",
    "ReportData",
    "TradeOffPoint",
    "compute_frontier",
    "compute_report",
    "explorer_page",
    "figure_kind",
    "graph_html",
    "html_page",
    "new_figure",
    "plot_frontier",
    "plot_latency",
    "plot_result",
    "plot_trade_off",
    "plot_widths",
    "print_summary",
    "result_html",
    "save_figure",
    "summary_text",
    "tables_html",
    "write_explorer",
    "write_html",
]
