# shellcheck shell=bash
# Pages of docs/ with measured tables in them.

# update_page PAGE TABLES   what stands between "<!-- NAME -->" and "<!-- end of NAME -->" in the page is replaced by what stands
# between these in the other file
update_page() {
  local next; next="$(mktemp)"
  awk -v tables="$2" '
    BEGIN { while ((getline line <tables) > 0) { if (line ~ /^<!-- end of /) name = ""; else if (line ~ /^<!-- /) name = line; else if (name) text[name] = text[name] line "\n" } }
    /^<!-- end of / { skip = 0 }
    !skip { print }
    $0 in text { printf "%s", text[$0]; skip = 1 }
  ' "$1" >"$next"
  cat "$next" >"$1"
  rm -f "$next"
}
