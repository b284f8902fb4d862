//! The settings of one source.

use super::Source;
use super::layers::Layers;
use super::reader::Faulted;
use super::serve::exposed;
use super::{parse, setting};
use crate::cli::ServeArgs;
use crate::guard::RemovalGuard;
use crate::http::authenticate::Credentials;
use crate::mixpanel::{Anonymous, IdentifierRules};
use crate::trait_key::TraitKeyTemplate;

/// Reads them all before it gives up on any; the trait keys of single cohorts are still to come.
pub(super) fn read_source(
    layers: &mut Layers<'_, '_, '_>,
    name: Result<String, Faulted>,
    args: &ServeArgs,
    warnings: &mut Vec<String>,
) -> Result<Source, Faulted> {
    let credentials = read_credentials(layers, &name, args, warnings);
    let identifier_properties = layers.value(
        &setting::IDENTIFIER_PROPERTY,
        args.identifier_property.as_deref(),
        parse::properties,
    );
    let anonymous = layers.value(
        &setting::ANONYMOUS,
        args.anonymous.as_deref(),
        parse::one_of(&[("skip", Anonymous::Skip), ("keep", Anonymous::Keep)]),
    );
    let trait_key = layers.value(
        &setting::TRAIT_KEY,
        args.trait_key.as_deref(),
        TraitKeyTemplate::parse,
    );
    let hold_removals_above = layers.optional(
        &setting::HOLD_REMOVALS_ABOVE,
        args.hold_removals_above.as_deref(),
        RemovalGuard::parse,
    );
    Ok(Source {
        name: name?.as_str().into(),
        credentials: credentials?,
        identifier: IdentifierRules::new(identifier_properties?, anonymous?),
        trait_key: trait_key?,
        explicit_keys: Vec::new(),
        hold_removals_above: hold_removals_above?,
    })
}

fn read_credentials(
    layers: &mut Layers<'_, '_, '_>,
    name: &Result<String, Faulted>,
    args: &ServeArgs,
    warnings: &mut Vec<String>,
) -> Result<Credentials, Faulted> {
    let basic = layers.optional(
        &setting::WEBHOOK_BASIC_AUTH,
        exposed(&args.webhook_basic_auth),
        |value| Credentials::parse_basic(value).map_err(|fault| fault.to_string()),
    );
    let signing = layers.optional(
        &setting::WEBHOOK_SIGNING_SECRET,
        exposed(&args.webhook_signing_secret),
        |value| Credentials::parse_signing(value).map_err(|fault| fault.to_string()),
    );
    match (basic?, signing?) {
        (None, None) if args.allow_unauthenticated => {
            let path = match name {
                Ok(name) if layers.is_table() => format!(" under /webhooks/mixpanel/{name}"),
                _ => String::new(),
            };
            warnings.push(format!(
                "--allow-unauthenticated: anyone who reaches the webhook listener{path} can change \
                 traits"
            ));
            Ok(Credentials::open())
        }
        (None, None) => {
            let other = layers.names(&setting::WEBHOOK_SIGNING_SECRET);
            layers.fault(
                &setting::WEBHOOK_BASIC_AUTH,
                format!(
                    "is missing and so is {other}: give one of them, or --allow-unauthenticated \
                     to let anyone send webhooks"
                ),
            )
        }
        (basic, signing) => {
            if args.allow_unauthenticated && !layers.is_table() {
                warnings.push(
                    "--allow-unauthenticated has no effect where credentials are set: webhooks \
                     need them"
                        .to_owned(),
                );
            }
            Ok(basic.unwrap_or_default().and(signing.unwrap_or_default()))
        }
    }
}
