"""`es-service serve`: the HTTP service and its dashboard, by plain uvicorn. Shows finished runs without Ray."""

from __future__ import annotations

import argparse
import socket
import sys
import threading
import webbrowser
from typing import Any

from es_service import errors
from es_service.cli.parser import add_command
from es_service.storage import files
from es_service.storage.listing import find_runs
from es_service.storage.runs import DEFAULT_STORAGE, check_run_name

__all__ = ["add_parser", "serve_command"]


def add_parser(commands: Any) -> None:
    """Add the command to the parser's."""
    serve = add_command(
        commands,
        "serve",
        serve_command,
        help="show runs in a browser and over HTTP",
        examples=(
            "serve --storage runs --open",
            "serve --storage runs --open demo",
            "serve --storage s3://bucket/runs --host 0.0.0.0 --token-file token.txt",
        ),
    )
    serve.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="DIR", help="folder or URI of the runs (default: %(default)s)"
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8420, help="port to listen on; 0 picks a free one (default: 8420)")
    serve.add_argument(
        "--token-file",
        metavar="F",
        help="file with the token that clients must send (default: ES_SERVICE_TOKEN, else none)",
    )
    serve.add_argument("--insecure", action="store_true", help="allow --host beyond this machine without a token")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="host name that clients may use for this machine; repeatable",
    )
    serve.add_argument(
        "--root-path", default="", metavar="PATH", help="URL prefix of the service behind a proxy, e.g. /es"
    )
    serve.add_argument("--no-ray", action="store_true", help="do not look for live runs on Ray")
    serve.add_argument(
        "--nice",
        type=int,
        choices=range(20),
        metavar="N",
        default=19,
        help="CPU niceness while reading from a Ray cluster, so that training has priority (default: %(default)s)",
    )
    serve.add_argument(
        "--own-tasks", action="store_true", help="import the modules of users' tasks (module:function) for previews"
    )
    serve.add_argument(
        "--open",
        nargs="?",
        const="",
        metavar="RUN",
        help="open the dashboard in the browser, at this run if one is named",
    )


def serve_command(options: argparse.Namespace) -> int:
    """Serve the dashboard and the HTTP API of a storage folder, until interrupted."""
    try:
        import uvicorn

        from es_service.api.app import create_app
        from es_service.api.guard.connections import server_options
        from es_service.api.settings import TOKEN_VARIABLE, Settings, is_loopback, read_token
    except ImportError as error:
        raise errors.ConfigError(f"serving needs more packages: pip install 'es-service[api]' ({error})") from error
    if not 0 <= options.port < 65536:
        raise errors.ConfigError(f"port must lie in [0, 65535], got {options.port}")
    page = f"/runs/{check_run_name(options.open)}" if options.open else "/"
    token = read_token(options.token_file)
    if token is None and not is_loopback(options.host) and not options.insecure:
        raise errors.ConfigError(
            f"--host {options.host} would let anyone on the network read the runs: set a token with --token-file or "
            f"{TOKEN_VARIABLE}, or pass --insecure"
        )
    hosts = ("127.0.0.1", "localhost", "::1", options.host, *options.allowed_host)
    storage = files.absolute(options.storage)
    find_runs(storage)  # fails early where it cannot be read
    settings = Settings(
        storage=storage,
        token=token,
        hosts=tuple(host for host in hosts if host not in ("0.0.0.0", "::")),
        ray=not options.no_ray,
        own_tasks=options.own_tasks,
        nice=options.nice,
        root_path=options.root_path,
    )
    config = uvicorn.Config(
        create_app(settings),
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=2,
        **server_options(settings.limits),
    )
    with _listening(options.host, options.port) as listener:
        shown = f"[{options.host}]" if ":" in options.host else options.host
        how = "asks for the token" if token is not None else "asks for no token"
        where = f"http://{shown}:{listener.getsockname()[1]}{settings.root_path}"

        def announce() -> None:
            print(f"serving {storage} on {where} ({how}); press Ctrl-C to stop", file=sys.stderr, flush=True)
            if options.open is not None:  # a text browser keeps its caller until it ends
                here = where.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
                threading.Thread(target=_open, args=(f"{here}{page}",), daemon=True).start()

        class Server(uvicorn.Server):
            """Says where it is once it answers, and stops in order on a signal."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    announce()

        Server(config).run(sockets=[listener])
    return 0


def _open(address: str) -> None:
    """Open an address in the browser."""
    if not webbrowser.open(address):
        print(f"es-service: no browser found here: open {address}", file=sys.stderr, flush=True)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise errors.ConfigError(
            f"cannot listen on {host}, port {port}: {error}; take another --host or --port"
        ) from error
    # Accepted sockets inherit it; asyncio sets it only on those made as TCP's, and without it answers wait for 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
