//! The command line: what can be typed, and nothing of what it does.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// What was typed.
#[derive(Debug, Parser)]
#[command(
    name = "devenv",
    version,
    about = "Brings a team's whole platform to proven ready on a local Kubernetes cluster",
    long_about = "Brings a team's whole platform to proven ready on a local Kubernetes cluster.\n\n\
        Run it in a folder that holds cluster-configs/ and bundles/. `devenv up` creates the cluster that the environment \
        file describes, loads the images it needs, installs Argo CD, and has it sync every bundle; it ends when all of it \
        is healthy, or says why it isn't. Run it again at any time: what is there stays, what is missing is made.",
    after_long_help = EXAMPLES,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What goes with every command.
    #[command(flatten)]
    pub global: Global,
}

const EXAMPLES: &str = "\
Examples:
  devenv up                        create or repair the environment `dev`
  devenv up --plan                 what `up` would do, touching nothing
  devenv sync                      push the working tree, wait until it is applied
  devenv sync --watch              the same on every change of a file, until Ctrl-C
  devenv doctor                    what on this machine would get in the way
  devenv list                      all environments, with their state, age and size
  devenv status -o json            what is there, for a program
  devenv hosts show                the names in the hosts file, and what is in their way
  devenv check                     prove again that everything works
  devenv run -- scripts/e2e        up, the command with KUBECONFIG and addresses set, down
  devenv secrets --show            the logins
  KUBECONFIG=$(devenv kubeconfig) kubectl get pods -A
  devenv down                      remove all that `up` made

Exit codes:
  0    proven ready                        3    up, but a check failed
  1    a step failed                       4    up, but the names are not wired
  2    the input is wrong (nothing was     130  interrupted
       touched)                            143  terminated
  `devenv run` ends with its command's.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create or repair the environment until everything is proven ready
    ///
    /// What exists already is kept: a second `up` changes nothing and says so, and an interrupted one is finished by
    /// running it again.
    Up(Up),
    /// Remove everything that `up` made, and nothing else
    ///
    /// Works from any half-made state; a second `down` has nothing to do. Downloads and builds in the cache stay.
    Down(Down),
    /// Back to the last state that passed all checks, in place
    ///
    /// What was changed in the cluster since is lost; the bundles are synced as they are now. Without such a state, or with
    /// --rebuild, the cluster is made anew from the full store.
    Reset(Reset),
    /// Save, list, restore or remove named states of the environment
    Snapshot {
        /// What to do
        #[command(subcommand)]
        command: SnapshotCommand,
    },
    /// Show what is: the cluster, Argo CD, each application and what it waits for
    Status(Status),
    /// Show all environments: this project's, and whatever of yours is up elsewhere
    List,
    /// Show what on this machine would get in the way, before anything is touched
    ///
    /// Every finding comes with a command that helps. The exit code is 1 if one of them blocks. With -v, what is fine is
    /// shown too.
    Doctor,
    /// Prove again, through the front door, that what is up works
    ///
    /// All checks run side by side, and all results are shown. The exit code is 3 if one fails, and 4 if this machine
    /// doesn't lead the platform's names to it.
    Check(Check),
    /// Bring the environment up, run a command in it, remove the environment again
    ///
    /// The command gets KUBECONFIG, DEVENV_CA (the platform's CA) and an address for each of the platform's names, such as
    /// DEVENV_URL_KEYCLOAK. Its exit code is devenv's. What somebody had brought up before is used, and left up.
    Run(Run),
    /// Stand by a `devenv run`, and remove what it made if it is killed; for devenv itself
    #[command(name = crate::guard::COMMAND, hide = true)]
    Guard {
        /// By which what the run started is known
        mark: String,
    },
    /// Show the generated logins, with their addresses
    Secrets(Secrets),
    /// Push the working tree, uncommitted changes included, and wait until it is applied
    Sync(Sync),
    /// Show which images and files are needed, or a key for a cache; fill a registry
    Images {
        /// What to show
        #[command(subcommand)]
        what: Images,
    },
    /// Show, apply or remove the environment's names in the hosts file
    Hosts {
        /// What to do
        #[command(subcommand)]
        what: Hosts,
    },
    /// Change the hosts file as root, as stdin asks; for devenv itself
    #[command(name = crate::names::HELPER, hide = true)]
    HostsHelper,
    /// Let this machine trust the CA that signs the platform's certificates, or no longer
    ///
    /// Without it everything works, but browsers warn, and curl needs --cacert. The CA can sign for the environment's domain
    /// and `localhost` and nothing else. Its key never leaves your data folder.
    Trust {
        /// What to do
        #[command(subcommand)]
        command: Trust,
    },
    /// Write the default bundles and cluster configs into a folder, ready to edit
    ///
    /// A file that exists is never written over.
    Init {
        /// The folder
        #[arg(default_value = ".", value_name = "DIR")]
        folder: PathBuf,
    },
    /// Print the path of the environment's kubeconfig
    Kubeconfig,
    /// Print a shell's completion script
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `devenv up`.
#[derive(Debug, Clone, Default, Args)]
pub struct Up {
    /// Print what would be done, and touch nothing
    #[arg(long)]
    pub plan: bool,
    /// Begin with nothing, even where a state that passed all checks is kept
    #[arg(long)]
    pub fresh: bool,
    /// Start from a state that `devenv snapshot export` wrote
    #[arg(long, value_name = "FILE", conflicts_with = "fresh")]
    pub from: Option<PathBuf>,
    /// Put it into a cluster that is there already without asking first; others don't ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// What to keep of it.
    #[command(flatten)]
    pub evidence: Evidence,
}

/// `devenv check`.
#[derive(Debug, Clone, Default, Args)]
pub struct Check {
    /// What to keep of it.
    #[command(flatten)]
    pub evidence: Evidence,
}

/// What a CI system wants to keep.
#[derive(Debug, Clone, Default, Args)]
pub struct Evidence {
    /// Also write the results of the checks to a file, as JUnit's XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// If it fails, collect in this folder what tells why: events, manifests, logs; secrets masked
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
}

/// `devenv run`.
#[derive(Debug, Clone, Default, Args)]
pub struct Run {
    /// Leave the environment up when it doesn't come up well or the command fails
    #[arg(long)]
    pub keep_on_failure: bool,
    /// Put it into a cluster that is there already without asking first; others don't ask
    #[arg(long, short = 'y')]
    pub yes: bool,
    /// What to keep of it.
    #[command(flatten)]
    pub evidence: Evidence,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `devenv secrets`.
#[derive(Debug, Clone, Default, Args)]
pub struct Secrets {
    /// Show the passwords in plain text
    #[arg(long)]
    pub show: bool,
}

/// `devenv down`.
#[derive(Debug, Clone, Default, Args)]
pub struct Down {
    /// Only stop the cluster, and keep it: the next `up` starts it again
    #[arg(long, conflicts_with = "purge")]
    pub keep: bool,
    /// Remove the saved state as well, from which the next `up` would start
    #[arg(long)]
    pub purge: bool,
}

/// `devenv reset`.
#[derive(Debug, Clone, Default, Args)]
pub struct Reset {
    /// Make the cluster anew, from the full store
    #[arg(long)]
    pub rebuild: bool,
}

/// `devenv snapshot`.
#[derive(Debug, Clone, Subcommand)]
pub enum SnapshotCommand {
    /// Save the state as it is now; the cluster stands still for a second or two
    Save {
        /// Its name; one of that name is replaced
        name: String,
    },
    /// List the saved states, with their size and age
    List,
    /// Go back to a saved state; what was changed since is lost
    Restore {
        /// Its name
        name: String,
    },
    /// Remove a saved state
    Remove {
        /// Its name
        name: String,
    },
    /// Write the state that last passed all checks into one file, for `devenv up --from`
    ///
    /// The file holds the environment's credentials: only you can read it, and whoever has it can read them.
    Export {
        /// The file; one that is there is replaced
        file: PathBuf,
    },
}

/// `devenv sync`.
#[derive(Debug, Clone, Default, Args)]
pub struct Sync {
    /// Allow to remove more than one bundle at once
    #[arg(long)]
    pub prune: bool,
    /// Go on: push on every change of a file in bundles/, until Ctrl-C
    #[arg(long, short = 'w')]
    pub watch: bool,
}

/// `devenv status`.
#[derive(Debug, Clone, Default, Args)]
pub struct Status {
    /// Go on: at a terminal drawn again and again, elsewhere a line for each change, until Ctrl-C
    #[arg(long, short = 'w')]
    pub watch: bool,
}

/// `devenv images`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Images {
    /// Print a key that changes exactly when something else is needed, for a CI system's cache of the store
    Key,
    /// Print each image and file, with its size where it is in the store
    List,
    /// Copy the images from the store into the private registry that the environment names
    ///
    /// What the registry has already is left alone. The login is that of Docker's own config.
    Push,
}

/// `devenv trust`.
#[derive(Debug, Clone, Subcommand)]
pub enum Trust {
    /// Make the CA known to the system and to the browsers that have stores of their own
    ///
    /// Says first what it runs; only the system's store needs sudo. `devenv trust uninstall` takes all of it back.
    Install(Stores),
    /// Take the CA out of all stores; its files stay, so that it can be installed again
    Uninstall(Stores),
    /// Show where the CA is, who trusts it, and what curl needs where nobody does
    Status,
}

/// `devenv trust install` and `uninstall`.
#[derive(Debug, Clone, Default, Args)]
pub struct Stores {
    /// Print what would be run, and touch nothing
    #[arg(long)]
    pub plan: bool,
}

/// `devenv hosts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Hosts {
    /// Print the lines that the environment wants, whether they are there, and what is in their way
    Show,
    /// Put the lines in; asks for a password by sudo if it must, and only at a terminal
    Apply,
    /// Take the lines out again; every other byte of the file stays
    Remove,
}

/// What goes with every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The environment: the name of a file in cluster-configs/, or a path to one
    #[arg(
        long,
        short = 'e',
        global = true,
        env = "DEVENV_ENVIRONMENT",
        default_value = "dev",
        value_name = "NAME|FILE"
    )]
    pub environment: String,
    /// How results are written: for people, or as JSON lines for programs
    #[arg(long, short = 'o', global = true, value_enum, default_value_t = Output::Text)]
    pub output: Output,
    /// Say only what matters: notices, the verdict, errors
    #[arg(long, short = 'q', global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show every line of the programs that run (-vv: the library logs too)
    #[arg(long, short = 'v', global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// When to use colours
    #[arg(long, global = true, value_enum, default_value_t = clap::ColorChoice::Auto)]
    pub color: clap::ColorChoice,
    /// How long one wait may last before it is given up
    #[arg(long, global = true, default_value = "10m", value_parser = duration, value_name = "DURATION")]
    pub timeout: Duration,
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; such as 90s or 10m"))
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// JSON, an object a line.
    Json,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
