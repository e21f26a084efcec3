"""Sweeps over the catalogue: what every table, function, view and role must be, whatever a later migration adds.

Each sweep is a query of what is wrong; each is shown to find a fault that is planted in a transaction.
"""

from __future__ import annotations

import psycopg
import pytest

OURS = "('app', 'storage', 'audit', 'identity', 'private')"
LEDGER = "onbrand_migrations"
"""Where yoyo keeps which migrations were applied."""
MINE = "(brand_id = ANY (( SELECT private.my_brands() AS my_brands)::text[]))"

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
    "a table with brand_id has the users' wall": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not exists (
          select 1 from pg_policy p where p.polrelid = c.oid and not p.polpermissive and p.polcmd = '*'
            and p.polroles = array['authenticated'::regrole::oid]
            and pg_get_expr(p.polqual, c.oid) in ('COALESCE({MINE}, false)',
              case c.oid::regclass::text when 'app.idempotency_keys' then '((brand_id IS NULL) OR {MINE})' end)
            and pg_get_expr(p.polwithcheck, c.oid) in ('{MINE}',
              case c.oid::regclass::text when 'app.idempotency_keys' then '((brand_id IS NULL) OR {MINE})' end))""",
    "a table with brand_id has the system's wall": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id' and not a.attisdropped
        where n.nspname in {OURS} and c.relkind in ('r', 'p') and not exists (
          select 1 from pg_policy p where p.polrelid = c.oid and not p.polpermissive and p.polcmd = '*'
            and p.polroles = array['brand_system'::regrole::oid]
            and pg_get_expr(p.polqual, c.oid) ~ 'brand_id = \\( SELECT private.ticket_brand\\('
            and pg_get_expr(p.polwithcheck, c.oid) ~ 'brand_id = \\( SELECT private.ticket_brand\\(')""",
    "only brandless rows pass the users' wall besides": """
        select p.polrelid::regclass::text from pg_policy p
        where p.polname = 'wall_user' and p.polrelid <> 'app.idempotency_keys'::regclass
          and pg_get_expr(p.polqual, p.polrelid) ~* ' or | is null'""",
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
    "a unique constraint of a brand's things begins with brand_id, or is an id that nobody chooses": f"""
        select i.indexrelid::regclass::text from pg_index i join pg_class c on c.oid = i.indrelid
        join pg_namespace n on n.oid = c.relnamespace
        join pg_attribute a on a.attrelid = c.oid and a.attname = 'brand_id'
        join pg_attribute f on f.attrelid = c.oid and f.attnum = i.indkey[0]
        where i.indisunique and n.nspname in {OURS} and f.attname <> 'brand_id'
          and not (f.attname = 'id' and not has_column_privilege('authenticated', c.oid, 'id', 'insert')
            and not has_column_privilege('brand_system', c.oid, 'id', 'insert'))
          and i.indexrelid::regclass::text not in ('storage.objects_bucket_id_name_key',  -- name begins with the brand
            'app.idempotency_keys_user_id_brand_id_key_key')                               -- begins with the caller""",
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
          and c.oid::regclass::text || '.' || a.attname not in ('app.api_keys.name')""",
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
            ('authenticated', 'brand_system', 'onbrand_definer', 'onbrand_identity')""",
    "tables belong to roles that cannot log in": f"""
        select c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
        join pg_roles r on r.oid = c.relowner
        where n.nspname in {OURS} and c.relkind in ('r', 'p', 'v', 'm')
          and (r.rolcanlogin or r.rolbypassrls or r.rolsuper)""",
    "a login of ours reaches no role that passes by row security": """
        with recursive reach(login, role) as (
          select r.oid, r.oid from pg_roles r where r.rolname in ('onbrand_web', 'onbrand_system')
          union select reach.login, m.roleid from reach join pg_auth_members m on m.member = reach.role)
        select reach.login::regrole::text || ' ' || reach.role::regrole::text from reach
        join pg_roles r on r.oid = reach.role
        where r.rolbypassrls or r.rolsuper or r.rolcreaterole or r.rolcreatedb or r.rolreplication""",
    "the two logins share no role": """
        with recursive reach(login, role) as (
          select r.oid, m.roleid from pg_roles r join pg_auth_members m on m.member = r.oid
            where r.rolname in ('onbrand_web', 'onbrand_system')
          union select reach.login, m.roleid from reach join pg_auth_members m on m.member = reach.role)
        select a.role::regrole::text from reach a join reach b on a.role = b.role and a.login < b.login""",
    "only the helpers' owner passes by row security": """
        select rolname::text from pg_roles where rolbypassrls and not rolsuper and rolname <> 'onbrand_definer'""",
    "a policy on memberships asks the helpers, not memberships": """
        select polname::text from pg_policy where polrelid = 'app.brand_users'::regclass
          and coalesce(pg_get_expr(polqual, polrelid), '') || coalesce(pg_get_expr(polwithcheck, polrelid), '')
            ~* 'from\\s+app\\.brand_users'""",
    "no client reads password hashes": """
        select r.rolname::text from pg_roles r
        where r.rolname in
            ('anon', 'authenticated', 'brand_system', 'onbrand_dispatcher', 'onbrand_web', 'onbrand_system')
          and has_any_column_privilege(r.rolname, 'identity.users', 'select, insert, update')""",
}  # fmt: skip

PLANT = {
    "no table lies where the other sweeps do not look": "create table public.careless (brand_id text)",
    "a table with brand_id has forced row security": "create table app.careless (brand_id text)",
    "every table has forced row security": "alter table app.models no force row level security",
    "a table with brand_id has the users' wall": "drop policy wall_user on app.models",
    "a table with brand_id has the system's wall": "drop policy wall_system on app.generations",
    "only brandless rows pass the users' wall besides": "alter policy wall_user on app.models using ("
    "brand_id = any ((select private.my_brands())::text[]) or version > 3)",
    "brand_id never changes": "drop trigger brand_immutable on app.brand_assets",
    "a foreign key between brand tables carries brand_id": "alter table app.asset_captions"
    " add constraint single foreign key (asset_id) references app.brand_assets (id)",
    "a unique constraint of a brand's things begins with brand_id, or is an id that nobody chooses": "create unique"
    " index loose on app.brand_assets (created_at)",
    "a definer function closes its search_path": "alter function private.my_brands() reset search_path",
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
    "a login of ours reaches no role that passes by row security": "grant onbrand_definer to authenticated",
    "the two logins share no role": "grant brand_system to onbrand_web",
    "only the helpers' owner passes by row security": "alter role authenticated bypassrls",
    "a policy on memberships asks the helpers, not memberships": "create policy loop on app.brand_users using"
    " (exists (select 1 from app.brand_users b where b.user_id = private.uid()))",
    "no client reads password hashes": "grant select (password_hash) on identity.users to authenticated",
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_nothing_is_wrong(name: str, owner: psycopg.Connection):
    assert owner.execute(SWEEPS[name]).fetchall() == []


@pytest.mark.parametrize("name", SWEEPS)
def test_the_sweep_finds_a_planted_fault(name: str, owner: psycopg.Connection):
    owner.execute("grant create on schema app to onbrand_web")
    owner.execute(PLANT[name])
    assert owner.execute(SWEEPS[name]).fetchall() != []


def test_a_table_without_a_wall_is_found_by_more_than_one_sweep(owner: psycopg.Connection):
    owner.execute("create table app.careless (id uuid primary key, brand_id text)")
    owner.execute("grant select on app.careless to authenticated")
    found = [name for name, query in SWEEPS.items() if ("app.careless",) in owner.execute(query).fetchall()]
    assert len(found) >= 5
