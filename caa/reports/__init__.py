"""Reports: rows in; tables, pages and figures out. No torch anywhere below."""
