//! The calls about writing again what a destination was told.

use actix_web::{HttpRequest, web};

use super::openapi::{Interrupted, LedgerFailed, Refused};
use super::views::{Cancelled, ErrorReply, Pending, ResyncQuery, ResyncRate};
use super::{Admin, AdminError, Operator, order};
use crate::cohort::SourceName;
use crate::store::{ResyncOrder, ResyncScope};

/// Has every trait of a cohort written again, wherever it goes. The order is on disk before the
/// answer; the traits become pending little by little, behind whatever is new, and none of them while
/// the cohort is paused.
#[utoipa::path(
    post,
    path = "/api/v1/cohorts/{source}/{cohort_id}/resync",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
        ResyncQuery,
    ),
    // By reference: an `Option` here would also allow `null`.
    request_body(
        content = ref("#/components/schemas/ResyncRate"),
        content_type = "application/json",
        description = "None means as fast as the destination takes it.",
    ),
    responses(
        (status = 200, description = "The traits will be written.", body = Pending),
        (status = 400, description = "The query or the body is not understood.", body = ErrorReply),
        (status = 404, description = "No such cohort or destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn resync_cohort(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
    request: HttpRequest,
    body: web::Bytes,
) -> Result<web::Json<Pending>, AdminError> {
    let scope = admin.cohort(path.into_inner(), &request)?;
    admin.have_written_again(scope, &body).await
}

/// Cancels that, as far as the traits were not made pending yet. An order of everything at the
/// destination is another: it still writes those that it did not come to.
#[utoipa::path(
    delete,
    path = "/api/v1/cohorts/{source}/{cohort_id}/resync",
    params(
        ("source" = String, Path, description = "The cohort's source."),
        ("cohort_id" = String, Path, description = "Mixpanel's id."),
        ResyncQuery,
    ),
    responses(
        (status = 200, description = "Also where nothing was ordered.", body = Cancelled),
        (status = 400, description = "The query is not understood.", body = ErrorReply),
        (status = 404, description = "No such cohort or destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn cancel_cohort(
    _: Operator,
    admin: web::Data<Admin>,
    path: web::Path<(String, String)>,
    request: HttpRequest,
) -> Result<web::Json<Cancelled>, AdminError> {
    let scope = admin.cohort(path.into_inner(), &request)?;
    admin.have_cancelled(scope).await
}

/// Has every trait of every cohort that goes to a destination written again. It takes the place of
/// the orders for single cohorts that are there; those given later go before it.
#[utoipa::path(
    post,
    path = "/api/v1/destinations/{name}/resync",
    params(("name" = String, Path, description = "The destination.")),
    // By reference: an `Option` here would also allow `null`.
    request_body(
        content = ref("#/components/schemas/ResyncRate"),
        content_type = "application/json",
        description = "None means as fast as the destination takes it.",
    ),
    responses(
        (status = 200, description = "The traits will be written.", body = Pending),
        (status = 400, description = "The body is not understood.", body = ErrorReply),
        (status = 404, description = "No such destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn resync_destination(
    _: Operator,
    admin: web::Data<Admin>,
    name: web::Path<String>,
    body: web::Bytes,
) -> Result<web::Json<Pending>, AdminError> {
    let scope = ResyncScope::Destination(admin.destination(&name)?.name().clone());
    admin.have_written_again(scope, &body).await
}

/// Cancels everything that is ordered to be written again at a destination, as far as it was not
/// made pending yet.
#[utoipa::path(
    delete,
    path = "/api/v1/destinations/{name}/resync",
    params(("name" = String, Path, description = "The destination.")),
    responses(
        (status = 200, description = "Also where nothing was ordered.", body = Cancelled),
        (status = 404, description = "No such destination.", body = ErrorReply),
        Refused, LedgerFailed, Interrupted,
    ),
    security(("admin_token" = []))
)]
pub async fn cancel_destination(
    _: Operator,
    admin: web::Data<Admin>,
    name: web::Path<String>,
) -> Result<web::Json<Cancelled>, AdminError> {
    let scope = ResyncScope::Destination(admin.destination(&name)?.name().clone());
    admin.have_cancelled(scope).await
}

impl Admin {
    fn cohort(
        &self,
        (source, cohort_id): (String, String),
        request: &HttpRequest,
    ) -> Result<ResyncScope, AdminError> {
        let query = web::Query::<ResyncQuery>::from_query(request.query_string())
            .map_err(|_| AdminError::ResyncQuery)?;
        let destination = query.into_inner().destination;
        Ok(ResyncScope::Cohort {
            source: SourceName::from(source.as_str()),
            cohort_id,
            destination: destination
                .map(|name| Ok::<_, AdminError>(self.destination(&name)?.name().clone()))
                .transpose()?,
        })
    }

    async fn have_written_again(
        &self,
        scope: ResyncScope,
        body: &[u8],
    ) -> Result<web::Json<Pending>, AdminError> {
        let ResyncRate {
            max_calls_per_second,
        } = match body {
            [] => ResyncRate::default(),
            body => order(body)?,
        };
        let (store, now) = (self.store.clone(), self.clock.now());
        let order = ResyncOrder {
            scope,
            max_calls_per_second,
        };
        let ordered = self.change(async move { store.order_resync(order, now).await });
        let pending = ordered.await?.ok_or(AdminError::UnknownCohort)?;
        Ok(web::Json(Pending { pending }))
    }

    async fn have_cancelled(&self, scope: ResyncScope) -> Result<web::Json<Cancelled>, AdminError> {
        let store = self.store.clone();
        let cancelled = self.change(async move { store.cancel_resync(scope).await });
        let cancelled = cancelled.await?.ok_or(AdminError::UnknownCohort)?;
        Ok(web::Json(Cancelled { cancelled }))
    }
}

#[cfg(test)]
mod tests {
    use actix_web::http::{Method, StatusCode};
    use serde_json::json;

    use crate::http::admin::tests::Desk;
    use crate::store::ResyncView;

    const COHORT: &str = "/api/v1/cohorts/default/7/resync";
    const DESTINATION: &str = "/api/v1/destinations/production/resync";

    #[actix_web::test]
    async fn it_is_ordered_and_cancelled() {
        let desk = Desk::on_loopback();
        let at = format!("{COHORT}?destination=production");
        for path in [COHORT, &at, DESTINATION] {
            let (status, body) = desk.post(path, "").await;
            assert_eq!((status, body), (StatusCode::OK, json!({"pending": 6})));
            let (status, body) = desk.ask(Method::DELETE, path, "").await;
            assert_eq!((status, body), (StatusCode::OK, json!({"cancelled": 5})));
        }
        let rate = json!({"max_calls_per_second": 0.5}).to_string();
        desk.post(DESTINATION, &rate).await;
        assert_eq!(
            *desk.store.orders.lock().unwrap(),
            [
                "resync default 7",
                "no resync default 7",
                "resync default 7 at production",
                "no resync default 7 at production",
                "resync everything at production",
                "no resync everything at production",
                "resync everything at production, 0.5 a second",
            ]
        );
    }

    #[actix_web::test]
    async fn what_is_not_understood_orders_nothing() {
        let desk = Desk::on_loopback();
        let odd = format!("{COHORT}?to=production");
        let unknown = format!("{COHORT}?destination=elsewhere");
        for (path, body, status, error) in [
            (COHORT, r#"{"rate": 1}"#, 400, "unknown field"),
            (COHORT, r#"{"max_calls_per_second": 0}"#, 400, "more than 0"),
            (
                DESTINATION,
                r#"{"max_calls_per_second": -1.5}"#,
                400,
                "more than 0",
            ),
            (DESTINATION, "[]", 400, "not understood"),
            (&odd, "", 400, "?destination=NAME"),
            (&unknown, "", 404, "no such destination"),
            (
                "/api/v1/destinations/elsewhere/resync",
                "",
                404,
                "no such destination",
            ),
        ] {
            let (answered, reply) = desk.post(path, body).await;
            assert_eq!(answered, status, "{path} {body}");
            let said = reply["error"].as_str().unwrap();
            assert!(said.contains(error), "{said}");
        }
        assert!(desk.store.orders.lock().unwrap().is_empty());
    }

    #[actix_web::test]
    async fn the_status_says_how_far_it_is() {
        let desk = Desk::on_loopback();
        let (_, body) = desk.get("/api/v1/status").await;
        assert_eq!(body["destinations"][0]["resync"], json!(null));
        let view = ResyncView {
            destination: "production".into(),
            cohort: Some(("default".into(), "7".into())),
            max_calls_per_second: Some(2.5),
            done: 40,
            of: 100,
            waiting: 1,
        };
        let elsewhere = ResyncView {
            destination: "elsewhere".into(),
            ..view.clone()
        };
        *desk.store.resyncs.lock().unwrap() = vec![elsewhere, view];
        let (_, body) = desk.get("/api/v1/status").await;
        assert_eq!(
            body["destinations"][0]["resync"],
            json!({"done": 40, "of": 100, "cohort": {"source": "default", "cohort_id": "7"},
                "max_calls_per_second": 2.5, "waiting": 1})
        );
    }
}
