//! What helps against a refusal of Azure's store or of Google's, in the words of those who run it.

use super::failure::Action;
use super::refusal::Refusal;
use super::settings::{Location, Settings};

/// The role that is enough for all that pgkeep does, in Azure …
const AZURE_ROLE: &str = "Storage Blob Data Contributor";
/// … and in Google's.
const GOOGLE_ROLE: &str = "Storage Object Admin (roles/storage.objectAdmin)";

/// What a shared access signature has to allow for it, as in its field `sp`.
fn letters(action: Action) -> &'static str {
    match action {
        Action::Read | Action::LookAt => "r",
        Action::Write | Action::Abort => "c and w",
        Action::Copy => "r, c and w",
        Action::Delete => "d",
        Action::List | Action::ListVersions | Action::ListUploads => "l",
    }
}

/// What the owner of a bucket of Google's has to allow for it.
fn permission(action: Action) -> &'static str {
    match action {
        Action::Read => "storage.objects.get",
        // Without the second one, what is not there is refused as well.
        Action::LookAt => "storage.objects.get and storage.objects.list",
        // Without the second one, nothing is written in place of something else.
        Action::Write => {
            "storage.objects.create, storage.objects.delete and storage.multipartUploads.create"
        }
        Action::Copy => "storage.objects.get, storage.objects.create and storage.objects.delete",
        Action::Delete => "storage.objects.delete",
        Action::List | Action::ListVersions => "storage.objects.list",
        Action::ListUploads => "storage.multipartUploads.list",
        Action::Abort => "storage.multipartUploads.abort",
    }
}

/// What helps in Azure.
pub(super) fn of_azure(refusal: &Refusal, action: Action, settings: &Settings) -> Option<String> {
    let container = &settings.location.bucket;
    let account = settings.account.as_deref().unwrap_or_default();
    let said = match refusal.code.as_str() {
        "ContainerNotFound" | "ContainerDisabled" => format!(
            "create the container {container} in the account {account}, or correct base_dir and azure_account"
        ),
        "ContainerBeingDeleted" => format!(
            "the container {container} was deleted just now: create it anew once Azure allows that"
        ),
        "AuthenticationFailed" => format!(
            "correct the credentials: the key or the signature is not one of the account {account}, or has expired; and set the clock of this machine, which must not be 15 minutes wrong"
        ),
        "AuthorizationPermissionMismatch" | "InsufficientAccountPermissions"
        | "AuthorizationServiceMismatch" | "AuthorizationResourceTypeMismatch" => format!(
            "give these credentials the role {AZURE_ROLE} on the container {container}; a shared access signature must allow {} there (sp=racwdl)",
            letters(action)
        ),
        "AuthorizationProtocolMismatch" => {
            "the shared access signature is for https alone: correct azure_endpoint".to_owned()
        }
        "AuthorizationFailure" | "AuthorizationSourceIPMismatch" => format!(
            "let this machine through the firewall of the account {account}, and the signature if it names addresses"
        ),
        "KeyBasedAuthenticationNotPermitted" => format!(
            "the account {account} takes no keys: use a service principal or a managed identity with the role {AZURE_ROLE}, or allow shared keys there"
        ),
        "InvalidAuthenticationInfo" | "NoAuthenticationInformation" => {
            "get new credentials: the token is not taken, or not any longer".to_owned()
        }
        "AccountIsDisabled" | "ResourceNotFound" | "AccountNotFound" => {
            format!("the account {account} is not there or is disabled: correct azure_account")
        }
        "BlobImmutableDueToPolicy" => format!(
            "a policy of the container {container} keeps what is in it: wait until that ends, or shorten it"
        ),
        "BlobArchived" | "BlobBeingRehydrated" => {
            "bring the blob back from the archive tier first, and keep backups in a tier that can be read at once".to_owned()
        }
        "SnapshotsPresent" => {
            "the blob has snapshots, which pgkeep does not make: delete them first".to_owned()
        }
        "AccountQuotaExceeded" => "free some space there, then run the same command again".to_owned(),
        code if code.starts_with("Lease") => {
            "somebody holds the blob by a lease: break it (az storage blob lease break)".to_owned()
        }
        _ => match refusal.status.as_u16() {
            401 => "correct the credentials".to_owned(),
            403 => format!(
                "give these credentials the role {AZURE_ROLE} on the container {container}; a shared access signature must allow {} there (sp=racwdl)",
                letters(action)
            ),
            404 => format!(
                "create the container {container} in the account {account}, or correct base_dir and azure_account"
            ),
            _ if refusal.is_momentary() => "run the same command again later".to_owned(),
            _ => return None,
        },
    };
    Some(said)
}

/// What helps in Google's.
pub(super) fn of_google(refusal: &Refusal, action: Action, location: &Location) -> Option<String> {
    let bucket = &location.bucket;
    let said = match refusal.code.as_str() {
        "NoSuchBucket" => {
            format!("create the bucket {bucket}, or correct base_dir and gcs_endpoint")
        }
        "InvalidBucketName" => "correct base_dir: no bucket has such a name".to_owned(),
        "AuthenticationRequired" | "InvalidSecurity" => {
            "correct the credentials: the token is not taken, or not any longer".to_owned()
        }
        "ExpiredToken" | "TokenExpired" => "get new credentials: the token has expired".to_owned(),
        "RetentionPolicyNotMet" | "ObjectUnderActiveHold" => format!(
            "a policy or a hold of the bucket {bucket} keeps what is in it: wait until that ends, or lift it"
        ),
        "UserProjectMissing" => {
            format!("the bucket {bucket} lets those pay who ask: make its owner pay")
        }
        "AccountProblem" | "UserAccountProblem" | "BillingDisabled" => {
            format!("see to the billing of the project that has the bucket {bucket}")
        }
        "KeyTooLongError" | "InvalidObjectName" => {
            "the store allows names of up to 1024 bytes: shorten the folder in base_dir".to_owned()
        }
        _ => match refusal.status.as_u16() {
            401 => "correct the credentials: the token is not taken, or not any longer; and set the clock of this machine".to_owned(),
            403 => format!(
                "give these credentials the role {GOOGLE_ROLE} on the bucket {bucket}, or at least {}",
                permission(action)
            ),
            404 => format!("create the bucket {bucket}, or correct base_dir and gcs_endpoint"),
            _ if refusal.is_momentary() => "run the same command again later".to_owned(),
            _ => return None,
        },
    };
    Some(said)
}
