//! The command line: what can be typed, and nothing of what it does.

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
  devenv doctor                    what on this machine would get in the way
  devenv list                      all environments, with their state, age and size
  devenv status -o json            what is there, for a program
  devenv hosts show                the names in the hosts file, and what is in their way
  devenv check                     prove again that everything works
  devenv secrets --show            the logins
  KUBECONFIG=$(devenv kubeconfig) kubectl get pods -A
  devenv down                      remove all that `up` made

Exit codes:
  0    proven ready                        3    up, but a check failed
  1    a step failed                       4    up, but the names are not wired
  2    the input is wrong (nothing was     130  interrupted
       touched)                            143  terminated";

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
    Down,
    /// Back to the state after `up`: the cluster anew, from the full store
    Reset,
    /// Show what is: the cluster, Argo CD, each application and what it waits for
    Status,
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
    /// Show the generated logins, with their addresses
    Secrets(Secrets),
    /// Push the working tree, uncommitted changes included, and wait until it is applied
    Sync(Sync),
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
}

/// `devenv check`.
#[derive(Debug, Clone, Default, Args)]
pub struct Check {
    /// Also write the results to a file, as JUnit's XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// `devenv secrets`.
#[derive(Debug, Clone, Default, Args)]
pub struct Secrets {
    /// Show the passwords in plain text
    #[arg(long)]
    pub show: bool,
}

/// `devenv sync`.
#[derive(Debug, Clone, Default, Args)]
pub struct Sync {
    /// Allow to remove more than one bundle at once
    #[arg(long)]
    pub prune: bool,
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
