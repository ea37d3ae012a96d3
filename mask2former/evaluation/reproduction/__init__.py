"""The leaderboard of the published settings: what can be evaluated, what came out, how it compares with the papers."""

from mask2former.evaluation.reproduction.plan import Plan, plan_settings
from mask2former.evaluation.reproduction.record import Record, read_results
from mask2former.evaluation.reproduction.report import read_records, write_report

__all__ = ["Plan", "Record", "plan_settings", "read_records", "read_results", "write_report"]
