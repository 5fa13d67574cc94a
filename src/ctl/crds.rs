//! `farspan crds`: the definitions of MeshPolicy and ExternalPeer.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::print;
use crate::kube::crd;

pub fn run() -> Result<()> {
    print(&documents(&objects()?)?)
}

/// The definitions, as `kubectl apply` reads them.
pub fn objects() -> Result<Vec<Value>> {
    crd::definitions()
        .into_iter()
        .map(|definition| {
            let mut object =
                serde_json::to_value(definition).context("Failed to write a definition")?;
            whole_numbers(&mut object);
            Ok(object)
        })
        .collect()
}

/// YAML documents, one an object.
pub fn documents(objects: &[Value]) -> Result<String> {
    let mut out = String::new();
    for object in objects {
        let text = serde_saphyr::to_string(object).context("Failed to write YAML")?;
        out.push_str("---\n");
        out.push_str(text.trim_end());
        out.push('\n');
    }
    Ok(out)
}

/// `1.0` is `1` at the API server, and would be a difference at the next `kubectl apply`.
fn whole_numbers(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Number(number) if number.is_f64() => {
            let float = number.as_f64().unwrap_or_default();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "checked to be whole and small in the same line"
            )]
            if float.fract() == 0.0 && float.abs() < 1e15 {
                *value = Value::from(float as i64);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_what_the_repository_ships() {
        let shipped = include_str!("../../manifests/base/crds.yaml");
        assert_eq!(
            documents(&objects().unwrap()).unwrap(),
            shipped,
            "run: farspan crds > manifests/base/crds.yaml"
        );
    }

    #[test]
    fn no_number_has_a_fraction() {
        let mut value = serde_json::json!({ "a": [1.0, 65535.0, 0.5, 7] });
        whole_numbers(&mut value);
        assert_eq!(value.to_string(), r#"{"a":[1,65535,0.5,7]}"#);
    }
}
