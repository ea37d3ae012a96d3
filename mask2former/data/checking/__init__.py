"""Whether the files of a setting are there and sound, before hours are spent on them."""

from mask2former.data.checking.check import check_setting, check_settings
from mask2former.data.checking.report import Finding, SettingReport, render

__all__ = ["Finding", "SettingReport", "check_setting", "check_settings", "render"]
