//! Answers as YAML 1.2, for those whose tools read nothing else. Its strings are JSON's, or plain words.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

/// A value in block style.
pub fn yaml(value: &impl Serialize) -> Result<String> {
    let mut out = String::new();
    write(&mut out, &serde_json::to_value(value)?, 0);
    Ok(out)
}

/// The cursor stands where the value begins; afterwards it stands at the start of a line.
fn write(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    indent(out, depth);
                }
                out.push_str(&text(key));
                out.push(':');
                if empty(value) {
                    out.push(' ');
                } else {
                    out.push('\n');
                    indent(out, depth + 1);
                }
                write(out, value, depth + 1);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    indent(out, depth);
                }
                out.push_str("- ");
                write(out, item, depth + 1);
            }
        }
        Value::String(string) => {
            out.push_str(&text(string));
            out.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}

/// Does it fit on the line of its key?
fn empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

/// A plain word where no reader can take it for something else, a quoted string otherwise.
fn text(string: &str) -> String {
    const NOT_STRINGS: [&str; 9] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    let plain = string.starts_with(|c: char| c.is_ascii_alphabetic())
        && string
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))
        && !NOT_STRINGS.contains(&string.to_ascii_lowercase().as_str());
    if plain {
        return string.to_owned();
    }
    let mut out = String::new();
    for c in Value::from(string).to_string().chars() {
        // JSON shows these as they are, YAML does not have them.
        if matches!(
            c,
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}'
        ) {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_nest_as_yaml_wants_it() {
        let value = json!({
            "node": { "name": "a", "endpoints": [] },
            "peers": [{ "rtt_ms": 1.5, "path": null }, ["x", "y z"]],
        });
        assert_eq!(
            yaml(&value).unwrap(),
            "node:\n  name: a\n  endpoints: []\npeers:\n  - rtt_ms: 1.5\n    path: null\n  - - x\n    - \"y z\"\n"
        );
    }

    #[test]
    fn a_string_stays_a_string_for_every_reader() {
        for string in [
            "", "no", "Yes", "1", "0x1f", "1e3", "12:30", "a: b", "- a", "#", "~", "é", "a\nb",
        ] {
            let written = text(string);
            assert!(written.starts_with('"'), "{written}");
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), string);
        }
        assert_eq!(text("\u{9b}31m"), "\"\\u009b31m\"");
        assert_eq!(text("eu-west.1"), "eu-west.1");
    }
}
