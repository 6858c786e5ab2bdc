//! What a bundle waits for before it is let in: another bundle, or a condition finer than that whole bundle.
//!
//! In `bundle.yaml` a need is a bundle's name, or a map: `{bundle: keycloak-db, when: {…}}`, where `when` names an object
//! and a number in it that must be reached. Keycloak can begin when the first database instance is ready, long before
//! the bundle with all three is healthy.

use std::fmt;

use serde::de::{MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// One need.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The bundle that must be ready.
    pub bundle: String,
    /// What is enough instead of all of it.
    pub when: Option<Condition>,
}

/// A number in an object of the cluster that must be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Condition {
    /// The object's apiVersion.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The way to the number, with dots: `status.readyInstances`.
    pub field: String,
    /// The number to reach.
    pub at_least: i64,
}

impl Need {
    /// The whole of a bundle.
    pub fn bundle(name: impl Into<String>) -> Self {
        Self {
            bundle: name.into(),
            when: None,
        }
    }
}

impl Condition {
    /// Whether the object, as it is in the cluster, meets it.
    pub fn is_met(&self, object: &Value) -> bool {
        let pointer = format!("/{}", self.field.replace('.', "/"));
        object
            .pointer(&pointer)
            .and_then(Value::as_i64)
            .is_some_and(|number| number >= self.at_least)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.when {
            None => formatter.write_str(&self.bundle),
            Some(Condition {
                kind,
                name,
                field,
                at_least,
                ..
            }) => {
                write!(
                    formatter,
                    "{} ({kind} {name}: {field} at least {at_least})",
                    self.bundle
                )
            }
        }
    }
}

/// By hand, because serde's untagged enums answer every mistake with the same sentence.
impl<'de> Deserialize<'de> for Need {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NeedVisitor)
    }
}

struct NeedVisitor;

impl<'de> Visitor<'de> for NeedVisitor {
    type Value = Need;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the name of a bundle, or a map with `bundle` and `when`")
    }

    fn visit_str<E>(self, name: &str) -> Result<Need, E> {
        Ok(Need::bundle(name))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Need, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            bundle: String,
            when: Condition,
        }
        let Written { bundle, when } = Written::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Need {
            bundle,
            when: Some(when),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::yaml;

    fn parsed(text: &str) -> Result<Vec<Need>, String> {
        yaml::parse(Path::new("bundle.yaml"), text).map_err(|mistake| mistake.to_string())
    }

    #[test]
    fn a_need_is_a_name_or_a_condition() {
        let needs = parsed(
            "- istiod\n- bundle: keycloak-db\n  when: {apiVersion: postgresql.cnpg.io/v1, kind: Cluster, namespace: \
             iam-system, name: keycloak-db, field: status.readyInstances, atLeast: 1}\n",
        )
        .unwrap();
        assert_eq!(needs[0].to_string(), "istiod");
        assert_eq!(
            needs[1].to_string(),
            "keycloak-db (Cluster keycloak-db: status.readyInstances at least 1)"
        );
        let condition = needs[1].when.as_ref().unwrap();
        assert!(!condition.is_met(&json!({"status": {}})));
        assert!(!condition.is_met(&json!({"status": {"readyInstances": 0}})));
        assert!(condition.is_met(&json!({"status": {"readyInstances": 3}})));
    }

    #[test]
    fn a_need_that_is_neither_is_told_where_it_stands() {
        insta::assert_snapshot!(parsed("- 7\n").unwrap_err(), @r"
        bundle.yaml:1:3: `.[0]` is the number `7`, expected the name of a bundle, or a map with `bundle` and `when`
          |
        1 | - 7
          |   ^
        ");
        insta::assert_snapshot!(parsed("- bundle: a\n  wehn: {}\n").unwrap_err(), @r"
        bundle.yaml:2:3: unknown key `wehn`, expected `bundle` or `when`
          |
        2 |   wehn: {}
          |   ^
        hint: did you mean `when`?
        ");
    }
}
