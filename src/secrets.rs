//! `devenv secrets`: the logins that were generated for this environment, with where they are for.

use serde::Serialize;

use crate::bundle::Login;
use crate::cli::Output;
use crate::context::Context;
use crate::error::Exit;
use crate::gitops::tree::authority;
use crate::inputs::{self, Inputs};
use crate::mask::MASK;
use crate::{checks, cluster};

/// One login, as it stands in `-o json`.
#[derive(Debug, Serialize)]
struct Shown {
    /// Where it is for: an address that a browser opens, or one in the cluster.
    at: String,
    user: String,
    /// Masked, unless it was asked for.
    password: String,
    namespace: String,
    secret: String,
}

/// Reads the logins; gives the text for stdout. `show` gives passwords in plain text.
pub async fn secrets(
    context: &Context,
    output: Output,
    show: bool,
) -> anyhow::Result<(Exit, String)> {
    let inputs = inputs::load(&context.selector, &context.directory)?;
    let environment = &inputs.environment;
    let client = cluster::reach(context, environment).await?.client;
    let mut shown = Vec::new();
    for (namespace, login) in logins(&inputs) {
        let secret = checks::secret(&client, &namespace, &login.secret).await?;
        let user = match login.user.as_str() {
            // Argo CD's secret holds no name.
            "" => "admin".to_owned(),
            key => secret.get(key).cloned().unwrap_or_default(),
        };
        let password = secret.get(&login.password).cloned().unwrap_or_default();
        shown.push(Shown {
            at: address(&inputs, &login.at),
            user,
            password: if show { password } else { MASK.to_owned() },
            namespace,
            secret: login.secret,
        });
    }
    let text = match output {
        Output::Json => format!("{}\n", serde_json::to_string(&shown)?),
        Output::Text => table(&shown),
    };
    if !show && output == Output::Text {
        context
            .events
            .notice("the passwords in plain text: devenv secrets --show");
    }
    Ok((Exit::Ready, text))
}

/// Argo CD's own login, then those that the bundles name.
fn logins(inputs: &Inputs) -> Vec<(String, Login)> {
    let argocd = Login {
        secret: "argocd-initial-admin-secret".to_owned(),
        user: String::new(),
        password: "password".to_owned(),
        at: "argocd".to_owned(),
    };
    let of_bundles = inputs.bundles.iter().flat_map(|bundle| {
        bundle
            .logins
            .iter()
            .map(|login| (bundle.namespace.clone(), login.clone()))
    });
    [("argocd".to_owned(), argocd)]
        .into_iter()
        .chain(of_bundles)
        .collect()
}

/// A name alone is one of the platform's, which browsers open.
fn address(inputs: &Inputs, at: &str) -> String {
    match at.contains(['.', ':']) {
        true => at.to_owned(),
        false => format!("https://{at}.{}", authority(inputs)),
    }
}

fn table(shown: &[Shown]) -> String {
    let width =
        |of: fn(&Shown) -> &str| shown.iter().map(|shown| of(shown).len()).max().unwrap_or(0);
    let (at_width, user_width) = (width(|shown| &shown.at), width(|shown| &shown.user));
    let password_width = width(|shown| &shown.password);
    let mut text = String::new();
    for Shown {
        at,
        user,
        password,
        namespace,
        secret,
    } in shown
    {
        text += &format!(
            "{at:at_width$}  {user:user_width$}  {password:password_width$}  {namespace}/{secret}\n"
        );
    }
    text
}
