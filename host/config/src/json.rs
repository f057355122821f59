//! Converts sections to JSON, for settings that have no meaning for the host.

use super::section::Section;
use super::source::{Node, TomlValue, join};

impl Section {
    /// Converts the table to JSON.
    pub(super) fn json(&self) -> serde_json::Map<String, serde_json::Value> {
        self.table
            .iter()
            .filter_map(|(key, node)| Some((key.clone(), self.json_of(&join(self.full_name(), key), node)?)))
            .collect()
    }

    fn json_of(&self, path: &str, node: &Node) -> Option<serde_json::Value> {
        Some(match &node.item {
            TomlValue::Text(text) => text.value.clone().into(),
            TomlValue::Flag(flag) => (*flag).into(),
            TomlValue::Time(time) => time.clone().into(),
            TomlValue::Integer(integer) => match (i64::try_from(*integer), u64::try_from(*integer)) {
                (Ok(integer), _) => integer.into(),
                (_, Ok(integer)) => integer.into(),
                _ => {
                    self.record(&node.location, path.to_owned(), "expected an integer of at most 64 bits".to_owned());
                    return None;
                }
            },
            TomlValue::Float(float) => match serde_json::Number::from_f64(*float) {
                Some(number) => number.into(),
                None => {
                    self.record(&node.location, path.to_owned(), format!("expected a finite number, got {float}"));
                    return None;
                }
            },
            TomlValue::Array(nodes) => {
                let values = nodes.iter().enumerate();
                values.filter_map(|(index, node)| self.json_of(&format!("{path}[{index}]"), node)).collect()
            }
            TomlValue::Table(table) => {
                let values = table.iter();
                let values =
                    values.filter_map(|(key, node)| Some((key.clone(), self.json_of(&join(path, key), node)?)));
                serde_json::Value::Object(values.collect())
            }
        })
    }
}
