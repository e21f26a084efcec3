"""Sweeps over the PostgreSQL catalogue: properties of every table, function, view and role, also of later migrations.

Each sweep is a query for violations, and finds a violation that a test plants in a transaction.
"""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from onbrand.db.logins import DatabaseUrls

OURS = "('app', 'storage', 'audit', 'identity', 'private')"
LOGINS = (
    "(select rolname from pg_roles where rolname ~ '^onbrand_(web|system)_'"
    " and has_database_privilege(oid, current_database(), 'connect'))"
)
LEDGER = "onbrand_migrations"
"""Where yoyo keeps which migrations were applied."""
PER_BRAND = f"""
        select c.oid, c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p')"""
SHOWN = f"""
        select c.oid, c.oid::regclass::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and c.oid <> 'storage.buckets'::regclass
          and (has_any_column_privilege('authenticated', c.oid, 'select')
            or has_any_column_privilege('brand_system', c.oid, 'select'))"""
"""Tables of which somebody who may run SQL sees a part."""
SEARCHES_OF_OURS = (
    "('uuid_send(user_id)', 'uuid_send(id)', 'reverse(email)', '(expires_at AT TIME ZONE ''UTC''::text)')"
)
"""Conditions by which our functions find rows of any brand: none is leakproof, so none precedes the wall."""


def wall(policy: str, role: str, function: str) -> str:
    """Tables whose policy for this role differs from `app.enable_brand_isolation`'s."""
    reads = "((( SELECT private.claimed_brand_object() AS claimed_brand_object))[brand_id] IS NOT NULL)"
    row = f"""
   FROM ( SELECT private.{function}() AS {function}
         OFFSET 0) s(brand)"""
    return f"""
        with wall as (select p.*, pg_get_expr(p.polqual, p.polrelid) as reads,
          pg_get_expr(p.polwithcheck, p.polrelid) as writes from pg_policy p where p.polname = '{policy}')
        select t.name from ({PER_BRAND}) t where t.name <> 'app.idempotency_keys' and not exists (
          select 1 from wall w where w.polrelid = t.oid and not w.polpermissive and w.polcmd = '*'
            and w.polroles = array['{role}'::regrole::oid]
            and w.reads = $wall$(((brand_id, true) = ( SELECT s.brand,
    (s.brand IS NOT NULL){row})) AND {reads})$wall$
            and w.writes = '(brand_id = ( SELECT private.{function}() AS {function}))')"""


SWEEPS = {
    "no table lies where the other sweeps do not look": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in {OURS}
          and n.nspname not in ('pg_catalog', 'pg_toast', 'information_schema', '{LEDGER}')""",
    "a table with brand_id has forced row security": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p')
          and not (c.relrowsecurity and c.relforcerowsecurity)""",
    "every table has forced row security": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not (c.relrowsecurity and c.relforcerowsecurity)""",
    "a table with brand_id has the users' wall": wall("brand_isolation_user", "authenticated", "my_brand"),
    "a table with brand_id has the system's wall": wall("brand_isolation_system", "brand_system", "ticket_brand"),
    "the wall is first among the policies' conditions, and nothing is or-ed to it": """
        select p.polrelid::regclass::text from pg_policy p
        where p.polname in ('brand_isolation_user', 'brand_isolation_system')
          and (p.polpermissive or pg_get_expr(p.polqual, p.polrelid) ~* ' or ')""",
    "an index begins with the brand, or with what no search of others goes by": f"""
        select i.indexrelid::regclass::text from pg_index i join ({SHOWN}) t on t.oid = i.indrelid
        left join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
        where coalesce(a.attname, '') <> case t.name when 'app.brands' then 'id'
            when 'app.idempotency_keys' then 'caller' else 'brand_id' end
          and (a.attname is not null or pg_get_indexdef(i.indexrelid, 1, false) not in {SEARCHES_OF_OURS}
            or exists (select 1 from pg_proc f
              where f.proname in ('uuid_send', 'reverse', 'timezone') and f.proleakproof))""",
    "the planner knows nothing of what columns hold": f"""
        select t.name || '.' || a.attname from ({SHOWN}) t join pg_attribute a on a.attrelid = t.oid
        where a.attnum > 0 and not a.attisdropped and a.attstattarget is distinct from 0
        union all
        select i.indexrelid::regclass::text from pg_index i join ({SHOWN}) t on t.oid = i.indrelid
        join pg_attribute a on a.attrelid = i.indexrelid
        where i.indkey[a.attnum - 1] = 0 and a.attstattarget is distinct from 0
        union all
        select s.stxname from pg_statistic_ext s join ({SHOWN}) t on t.oid = s.stxrelid""",
    "brand_id never changes": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not exists (select 1 from pg_trigger t
          where t.tgrelid = c.oid and t.tgfoid = 'app.tg_brand_immutable'::regproc and t.tgenabled in ('O', 'A'))""",
    "a foreign key between brand tables carries brand_id": f"""
        select k.conrelid::regclass::text || ' ' || k.conname from pg_constraint k
        join pg_attribute a on a.attrelid = k.conrelid and a.attname = 'brand_id'
        join pg_attribute b on b.attrelid = k.confrelid and b.attname = 'brand_id'
        join pg_class c on c.oid = k.conrelid join pg_namespace n on n.oid = c.relnamespace
        where k.contype = 'f' and n.nspname in {OURS}
          and not exists (select 1 from unnest(k.conkey, k.confkey) as pair(own, other)
            where pair.own = a.attnum and pair.other = b.attnum)""",
    "a definer function closes its search_path": f"""
        select f.oid::regprocedure::text from pg_proc f join pg_namespace n on n.oid = f.pronamespace
        where n.nspname in {OURS} and f.prosecdef
          and not coalesce(f.proconfig, '{{}}') @> array['search_path=""']""",
    "a definer function belongs to a role that cannot log in and owns no brand's table": f"""
        select f.oid::regprocedure::text from pg_proc f join pg_namespace n on n.oid = f.pronamespace
        where n.nspname in {OURS} and f.prosecdef
          and f.proowner::regrole::text not in ('onbrand_definer', 'onbrand_identity')""",
    "the helpers' owner reads ids, states and memberships, and no word that people wrote": f"""
        select c.oid::regclass::text || '.' || a.attname from pg_class c
        join pg_namespace n on n.oid = c.relnamespace join pg_attribute a on a.attrelid = c.oid
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and a.attnum > 0 and not a.attisdropped
          and has_column_privilege('onbrand_definer', c.oid, a.attnum, 'select')
          and (a.attname in ('name', 'caption', 'prompt', 'negative_prompt', 'training_config', 'trigger_word', 'title',
              'filename', 'metadata', 'object_name', 'password_hash', 'data', 'receipt', 'body')
            or c.oid::regclass::text in ('app.models', 'app.generated_images', 'app.brand_assets', 'storage.objects',
              'app.documents', 'app.asset_captions', 'identity.users'))
          and c.oid::regclass::text || '.' || a.attname not in ('app.api_keys.name', 'app.brands.name',
            'app.models.name', 'app.models.brand_id', 'app.models.created_at',
            'app.generated_images.brand_id', 'app.generated_images.generation_id')""",
    "a function is not PUBLIC's to call": f"""
        select f.oid::regprocedure::text from pg_proc f join pg_namespace n on n.oid = f.pronamespace
        where n.nspname in {OURS} and exists (
          select 1 from aclexplode(coalesce(f.proacl, acldefault('f', f.proowner))) x
          where x.grantee = 0 and x.privilege_type = 'EXECUTE')""",
    "a view asks as its reader": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in {OURS} and (c.relkind = 'm' or (c.relkind = 'v'
          and not coalesce(c.reloptions, '{{}}') && array['security_invoker=true', 'security_invoker=on']))""",
    "no table is PUBLIC's": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace,
          aclexplode(c.relacl) x where n.nspname in {OURS} and x.grantee = 0""",
    "nobody but owners may truncate, refer or add triggers": f"""
        select c.oid::regclass::text || ' ' || x.grantee::regrole::text from pg_class c
        join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) x
        where n.nspname in {OURS} and x.grantee <> c.relowner
          and x.privilege_type in ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')""",
    "only the two walled families and our helpers may touch a table": f"""
        select c.oid::regclass::text || ' ' || x.grantee::regrole::text from pg_class c
        join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) x
        where n.nspname in {OURS} and c.relkind in ('r', 'p', 'v', 'm') and x.grantee <> c.relowner
          and x.grantee::regrole::text not in
            ('authenticated', 'brand_system', 'onbrand_definer', 'onbrand_identity')
          and (c.oid::regclass::text, x.grantee::regrole::text) not in (('app.brands', 'onbrand_operator'),
            ('app.brand_limits', 'onbrand_operator'), ('audit.events', 'onbrand_operator'))""",
    "tables belong to roles that cannot log in": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_roles r on r.oid = c.relowner
        where n.nspname in {OURS} and c.relkind in ('r', 'p', 'v', 'm')
          and (r.rolcanlogin or r.rolbypassrls or r.rolsuper)""",
    "a login of ours reaches no role that passes by row security": f"""
        with recursive reach(login, role) as (
          select r.oid, r.oid from pg_roles r where r.rolname in {LOGINS}
          union select reach.login, m.roleid from reach join pg_auth_members m on m.member = reach.role)
        select reach.login::regrole::text || ' ' || reach.role::regrole::text from reach
        join pg_roles r on r.oid = reach.role
        where r.rolbypassrls or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication""",
    "a login of ours becomes the roles of its door and no other": f"""
        with recursive reach(login, role) as (
          select r.oid, m.roleid from pg_roles r join pg_auth_members m on m.member = r.oid
            where r.rolname in {LOGINS}
          union select reach.login, m.roleid from reach join pg_auth_members m on m.member = reach.role)
        select reach.login::regrole::text || ' ' || reach.role::regrole::text from reach
        where reach.role::regrole::text not in ('anon', 'authenticated', 'brand_system', 'onbrand_dispatcher')""",
    "the two logins share no role": f"""
        with recursive reach(login, role) as (
          select r.oid, m.roleid from pg_roles r join pg_auth_members m on m.member = r.oid
            where r.rolname in {LOGINS}
          union select reach.login, m.roleid from reach join pg_auth_members m on m.member = reach.role)
        select a.role::regrole::text from reach a join reach b on a.role = b.role and a.login < b.login""",
    "no role of ours passes by row security": """
        select rolname::text from pg_roles where rolbypassrls and not rolsuper""",
    "a policy on memberships asks the helpers, not memberships": """
        select polname::text from pg_policy where polrelid = 'app.brand_users'::regclass
          and coalesce(pg_get_expr(polqual, polrelid), '') || coalesce(pg_get_expr(polwithcheck, polrelid), '')
            ~* 'from\\s+app\\.brand_users'""",
    "no client reads password hashes": """
        select r.rolname::text from pg_roles r
        where r.rolname in
            ('anon', 'authenticated', 'brand_system', 'onbrand_dispatcher')
          and has_any_column_privilege(r.rolname, 'identity.users', 'select, insert, update')""",
}  # fmt: skip

PLANT = {
    "no table lies where the other sweeps do not look": "create table public.careless (brand_id text)",
    "a table with brand_id has forced row security": "create table app.careless (brand_id text)",
    "every table has forced row security": "alter table app.models no force row level security",
    "a table with brand_id has the users' wall": "drop policy brand_isolation_user on app.models",
    "a table with brand_id has the system's wall": "drop policy brand_isolation_system on app.generations",
    "the wall is first among the policies' conditions, and nothing is or-ed to it": "alter policy"
    " brand_isolation_user on app.models using (brand_id = (select private.my_brand()) or version > 3)",
    "an index begins with the brand, or with what no search of others goes by": "create index loose on app.models (id)",
    "the planner knows nothing of what columns hold": "alter table app.generations alter column prompt"
    " set statistics 100",
    "brand_id never changes": "drop trigger brand_immutable on app.brand_assets",
    "a foreign key between brand tables carries brand_id": "alter table app.brand_assets add unique (id); alter table"
    " app.asset_captions add constraint single foreign key (asset_id) references app.brand_assets (id)",
    "a definer function closes its search_path": "alter function private.my_role() reset search_path",
    "a definer function belongs to a role that cannot log in and owns no brand's table": "create function app.loose()"
    " returns int language sql security definer set search_path = '' as 'select 1'",
    "the helpers' owner reads ids, states and memberships, and no word that people wrote": "grant select (prompt) on"
    " app.generations to onbrand_definer",
    "a function is not PUBLIC's to call": "grant execute on function private.queue() to public",
    "a view asks as its reader": "create view app.everything as select * from app.models",
    "no table is PUBLIC's": "grant select on app.models to public",
    "nobody but owners may truncate, refer or add triggers": "grant truncate on app.models to authenticated",
    "only the two walled families and our helpers may touch a table": "grant select on app.models to anon",
    "tables belong to roles that cannot log in": "alter table app.models owner to onbrand_web",
    "a login of ours reaches no role that passes by row security": "grant postgres to authenticated",
    "a login of ours becomes the roles of its door and no other": "grant onbrand_definer to onbrand_web",
    "the two logins share no role": "grant brand_system to onbrand_web",
    "no role of ours passes by row security": "alter role authenticated bypassrls",
    "a policy on memberships asks the helpers, not memberships": "create policy loop on app.brand_users using"
    " (exists (select 1 from app.brand_users b where b.user_id = private.uid()))",
    "no client reads password hashes": "grant select (password_hash) on identity.users to authenticated",
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_nothing_is_wrong(name: str, owner: psycopg.Connection):
    assert owner.execute(SWEEPS[name]).fetchall() == []


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweep_finds_a_planted_fault(name: str, owner: psycopg.Connection, database: DatabaseUrls):
    web = conninfo_to_dict(database.web_url)["user"]
    owner.execute(f"grant create on schema app to {web}")
    owner.execute(PLANT[name].replace("onbrand_web", web))
    assert owner.execute(SWEEPS[name]).fetchall() != []


def test_a_table_without_a_wall_is_found_by_more_than_one_sweep(owner: psycopg.Connection):
    owner.execute("create table app.careless (id uuid primary key, brand_id text)")
    owner.execute("grant select on app.careless to authenticated")
    found = [name for name, query in SWEEPS.items() if ("app.careless",) in owner.execute(query).fetchall()]
    assert len(found) >= 5
