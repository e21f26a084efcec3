-- depends: 0002_content
-- Credentials beside the token of a log-in: brand-bound API keys, sessions of pages, accounts of an outside issuer, and
-- invitations. A credential's claims name its row; whether it lives, and how far it reaches, is read off the row.
set role onbrand_owner;

create table app.api_keys (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  name text not null check (char_length(name) between 1 and 200),
  prefix text not null generated always as ('ob_' || left(id::text, 8)) stored,
  hash text not null check (hash ~ '^[0-9a-f]{64}$'),
  scopes text[] not null check (cardinality(scopes) between 1 and 5 and array_position(scopes, null) is null
    and scopes <@ array['read', 'upload', 'train', 'generate', 'manage']),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz check (expires_at > created_at),
  last_used_at timestamptz,
  revoked_at timestamptz,
  primary key (brand_id, id)
);
create index api_keys_by_time on app.api_keys (brand_id, created_at, id);
-- For find_key, which knows no brand yet: not for searches by who may run SQL (see brand_users_by_user).
create index api_keys_by_id on app.api_keys (uuid_send(id));
alter index app.api_keys_by_id alter column 1 set statistics 0;
create index api_keys_by_user on app.api_keys (brand_id, user_id) where revoked_at is null;

create table app.invitations (
  id uuid not null default gen_random_uuid(),
  brand_id text not null references app.brands,
  user_id uuid not null,
  email text not null check (email = lower(email) and char_length(email) between 3 and 254),
  role text not null check (role in ('member', 'admin')),
  hash text not null check (hash ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  expires_at timestamptz not null check (expires_at > created_at and expires_at <= created_at + interval '31 days'),
  accepted_at timestamptz,
  accepted_by uuid,
  revoked_at timestamptz,
  primary key (brand_id, id),
  check (num_nulls(accepted_at, accepted_by) in (0, 2)),
  check (accepted_at is null or revoked_at is null)
);
create index invitations_by_time on app.invitations (brand_id, created_at, id);
create index invitations_by_id on app.invitations (uuid_send(id));
alter index app.invitations_by_id alter column 1 set statistics 0;

call app.build_wall('app.api_keys');
call app.build_wall('app.invitations');

reset role;

-- Accounts that an outside issuer vouches for, and sessions of pages. An account may have no password and no address.
set role onbrand_identity;

alter table identity.users alter column email drop not null;
alter table identity.users alter column password_hash drop not null;

create table identity.subjects (
  issuer text not null check (char_length(issuer) between 1 and 500),
  subject text not null check (char_length(subject) between 1 and 255),
  user_id uuid not null references identity.users,
  created_at timestamptz not null default clock_timestamp(),
  primary key (issuer, subject)
);
create index subjects_by_user on identity.subjects (user_id);
alter table identity.subjects enable row level security;
alter table identity.subjects force row level security;
create policy own_code on identity.subjects to onbrand_identity using (true) with check (true);

create table identity.sessions (
  id uuid primary key default gen_random_uuid(),
  user_id uuid not null references identity.users,
  hash text not null unique check (hash ~ '^[0-9a-f]{64}$'),
  created_at timestamptz not null default clock_timestamp(),
  last_seen_at timestamptz not null default clock_timestamp(),
  idle interval not null check (idle > interval '0'),
  expires_at timestamptz not null,
  ended_at timestamptz
);
create index sessions_by_user on identity.sessions (user_id, created_at);
alter table identity.sessions enable row level security;
alter table identity.sessions force row level security;
create policy own_code on identity.sessions to onbrand_identity, onbrand_definer using (true) with check (true);
grant usage on schema identity to onbrand_definer;
grant select (id, user_id, idle, last_seen_at, expires_at, ended_at) on identity.sessions to onbrand_definer;

-- The user themselves, reaching all that is theirs: neither a key nor a token that is bound to one brand.
create function private.in_person() returns boolean
language sql stable security definer set search_path = '' as $$
  select private.uid() is not null
    and num_nonnulls(private.ctx('bound_to'), private.ctx('key_id'), private.ctx('scopes')) = 0
$$;

create function private.my_email() returns text
language sql stable security definer set search_path = '' as $$
  select u.email from identity.users u where u.id = private.uid()
$$;

create function private.session_lives(session_id uuid, me uuid) returns boolean
language plpgsql stable security definer set search_path = '' as $$
begin
  return exists (select 1 from identity.sessions s where s.id = session_lives.session_id
    and s.user_id = session_lives.me and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp());
end $$;

-- Whose session has this hash; being asked for keeps it awake. Written at most once a minute.
create function private.find_session(hash text) returns table (id uuid, user_id uuid, expires_at timestamptz)
language sql volatile security definer set search_path = '' as $$
  update identity.sessions s set last_seen_at = statement_timestamp()
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
    and s.last_seen_at < statement_timestamp() - least(interval '1 minute', s.idle / 4);
  select s.id, s.user_id, s.expires_at from identity.sessions s
  where private.claims() is not null and s.hash = find_session.hash and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
$$;

-- A session reaches all that its user reaches: what is narrower must not open one.
create function private.open_session(hash text, idle interval, life interval)
returns table (id uuid, expires_at timestamptz)
language plpgsql volatile security definer set search_path = '' as $$
begin
  perform private.must_be_asked('open_session', hash);
  if not private.in_person() or private.ctx('session_id') is not null or open_session.life > interval '31 days' then
    raise exception 'no session for this credential' using errcode = '42501';
  end if;
  delete from identity.sessions s where s.user_id = private.uid() and s.expires_at < clock_timestamp();
  return query insert into identity.sessions as s (user_id, hash, idle, expires_at)
    values (private.uid(), open_session.hash, open_session.idle, clock_timestamp() + open_session.life)
    returning s.id, s.expires_at;
end $$;

create function private.my_sessions()
returns table (id uuid, created_at timestamptz, last_seen_at timestamptz, expires_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select s.id, s.created_at, s.last_seen_at, s.expires_at from identity.sessions s
  where private.in_person() and s.user_id = private.uid() and s.ended_at is null
    and least(s.expires_at, s.last_seen_at + s.idle) > clock_timestamp()
  order by s.created_at desc, s.id
$$;

-- End one of the caller's sessions, or all of them (null); how many ended.
create function private.end_sessions(session_id uuid) returns integer
language sql volatile security definer set search_path = '' as $$
  with ended as (
    update identity.sessions s set ended_at = statement_timestamp()
    where private.in_person() and s.user_id = private.uid() and s.ended_at is null
      and (end_sessions.session_id is null or s.id = end_sessions.session_id)
    returning 1)
  select count(*)::integer from ended
$$;

-- The account of a subject of an outside issuer, made at its first sight. An address that has an account already is
-- refused (23505): who owns the one need not own the other, so they are joined by hand (link_subject) or not at all.
create function private.external_user(issuer text, subject text, email text) returns uuid
language plpgsql volatile security definer set search_path = '' as $$
declare who uuid;
begin
  perform private.must_be_signed();
  select s.user_id into who from identity.subjects s
    where s.issuer = external_user.issuer and s.subject = external_user.subject;
  if who is not null then return who; end if;
  begin
    insert into identity.users as u (email) values (lower(external_user.email)) returning u.id into who;
    insert into identity.subjects (issuer, subject, user_id)
      values (external_user.issuer, external_user.subject, who);
  exception when unique_violation then
    select s.user_id into who from identity.subjects s
      where s.issuer = external_user.issuer and s.subject = external_user.subject;
    if who is null then raise; end if;
  end;
  return who;
end $$;

create function private.link_subject(issuer text, subject text) returns void
language plpgsql volatile security definer set search_path = '' as $$
begin
  if not private.in_person() then
    raise exception 'no link with this credential' using errcode = '42501';
  end if;
  insert into identity.subjects (issuer, subject, user_id)
    values (link_subject.issuer, link_subject.subject, private.uid());
end $$;

reset role;
grant execute on function private.in_person(), private.my_email(), private.session_lives(uuid, uuid) to onbrand_definer;
grant execute on function private.find_session(text), private.external_user(text, text, text) to anon;
grant execute on function private.open_session(text, interval, interval), private.my_sessions(),
  private.end_sessions(uuid), private.link_subject(text, text) to authenticated;

grant select (brand_id, name, created_at) on app.models to onbrand_definer;
grant select, update (last_used_at, revoked_at) on app.api_keys to onbrand_definer;
grant select, update (accepted_at, accepted_by, revoked_at) on app.invitations to onbrand_definer;

set role onbrand_definer;

-- A key or a session that has ended reaches nothing, whatever its claims say, from the next statement on.
create function private.credential_lives() returns boolean
language plpgsql stable security definer set search_path = '' as $$
declare
  c jsonb := private.claims();
begin
  if c is null then return false; end if;
  if c ->> 'key_id' is not null then  -- apart from what follows: an expression with a query in it is always a query
    if not exists (select 1 from app.api_keys k
        where k.id = (c ->> 'key_id')::uuid and k.brand_id = c ->> 'brand_id'
          and k.user_id = (c ->> 'sub')::uuid and k.revoked_at is null
          and (k.expires_at is null or k.expires_at > clock_timestamp())) then
      return false;
    end if;
  end if;
  return c ->> 'session_id' is null or private.session_lives((c ->> 'session_id')::uuid, (c ->> 'sub')::uuid);
end $$;

-- The key with this id and hash, if it lives and its maker is still a member. Its use is written at most once a minute.
create function private.find_key(id uuid, hash text) returns table (brand_id text, user_id uuid, scopes text[])
language sql volatile security definer set search_path = '' as $$
  update app.api_keys k set last_used_at = statement_timestamp()
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.key_stands(k.revoked_at, k.expires_at, clock_timestamp())
    and (k.last_used_at is null or k.last_used_at < statement_timestamp() - interval '1 minute');
  select k.brand_id, k.user_id, k.scopes from app.api_keys k
  where private.claims() is not null and uuid_send(k.id) = uuid_send(find_key.id) and k.hash = find_key.hash
    and private.key_stands(k.revoked_at, k.expires_at, clock_timestamp())
    and exists (select 1 from app.brand_users bu where bu.brand_id = k.brand_id and bu.user_id = k.user_id)
$$;

-- The models that the credential reaches, over all of its brands: newest first within a brand, then the bases. `after_...` is
-- the last row of the page before.
create function private.my_models(families text[], after_brand text, after_base boolean, after_age numeric,
  after_name text, n integer)
returns table (brand_id text, is_base boolean, age numeric, name text, created_at timestamptz)
language sql stable security definer set search_path = '' as $$
  select x.brand_id, x.is_base, x.age, x.name, x.created_at from (
    select b.id as brand_id, false as is_base, -extract(epoch from m.created_at) as age, m.name, m.created_at
    from private.my_brands(null, null) b join app.models m on m.brand_id = b.id
    union all
    select b.id, true, f.at, f.name, null
    from private.my_brands(null, null) b cross join unnest(my_models.families) with ordinality f (name, at)
  ) x
  where my_models.after_brand is null or (x.brand_id, x.is_base, x.age, x.name)
    > (my_models.after_brand, my_models.after_base, my_models.after_age, my_models.after_name)
  order by x.brand_id, x.is_base, x.age, x.name limit least(my_models.n, 1001)
$$;

-- Become a member by an invitation: once, in time, for the account of its address, while who invited is still an admin.
-- The brand; null for every reason why not.
create function private.accept_invitation(id uuid, hash text) returns text
language plpgsql volatile security definer set search_path = '' as $$
declare invited record;
begin
  if not private.in_person() or not private.credential_lives() then
    raise exception 'no invitation for this credential' using errcode = '42501';
  end if;
  select i.brand_id, i.role into invited from app.invitations i
    where uuid_send(i.id) = uuid_send(accept_invitation.id) and i.hash = accept_invitation.hash and i.email = private.my_email()
      and i.accepted_at is null and i.revoked_at is null and i.expires_at > statement_timestamp()
      and exists (select 1 from app.brand_users bu
        where bu.brand_id = i.brand_id and bu.user_id = i.user_id and bu.role = 'admin')
    for update of i;
  if invited.brand_id is null then return null; end if;
  insert into app.brand_users (brand_id, user_id, role) values (invited.brand_id, private.uid(), invited.role)
    on conflict do nothing;
  update app.invitations i set accepted_at = statement_timestamp(), accepted_by = private.uid()
    where i.brand_id = invited.brand_id and i.id = accept_invitation.id;
  return invited.brand_id;
end $$;

-- Who leaves a brand leaves no key and no open invitation behind, also for the day when they come back.
create function private.tg_end_credentials() returns trigger
language plpgsql volatile security definer set search_path = '' as $$
begin
  update app.api_keys k set revoked_at = statement_timestamp()
    where k.brand_id = old.brand_id and k.user_id = old.user_id and k.revoked_at is null;
  update app.invitations i set revoked_at = statement_timestamp()
    where i.brand_id = old.brand_id and i.user_id = old.user_id and i.revoked_at is null and i.accepted_at is null;
  return null;
end $$;

reset role;
grant execute on function private.credential_lives()
  to authenticated, onbrand_owner, onbrand_identity;
grant execute on function private.find_key(uuid, text) to anon;
grant execute on function private.my_models(text[], text, boolean, numeric, text, integer) to authenticated;
grant execute on function private.accept_invitation(uuid, text) to authenticated;
grant execute on function private.tg_end_credentials() to onbrand_owner;

set role onbrand_owner;
create trigger end_credentials after delete on app.brand_users
  for each row execute function private.tg_end_credentials();

-- A key without the scope does not write, whatever a permissive policy says. Every later migration calls this for what
-- members may write themselves; what only admins may is closed already, for is_admin() is false without `manage`.
create procedure app.need_scope(t regclass, verb text, scope text)
language plpgsql set search_path = '' as $$
begin
  if verb not in ('insert', 'update', 'delete') then
    raise exception 'need_scope knows insert, update and delete' using errcode = '22023';
  end if;
  execute format('create policy %I on %s as restrictive for %s to authenticated %s %s', 'scope_' || verb, t, verb,
    case when verb <> 'insert' then format('using ((select private.may(%L)))', scope) end,
    case when verb <> 'delete' then format('with check ((select private.may(%L)))', scope) end);
end $$;
revoke execute on procedure app.need_scope(regclass, text, text) from public;

call app.need_scope('app.brands', 'insert', 'manage');
call app.need_scope('app.brand_users', 'insert', 'manage');
call app.need_scope('app.brand_users', 'update', 'manage');
call app.need_scope('app.brand_users', 'delete', 'manage');
call app.need_scope('app.brand_assets', 'insert', 'upload');
call app.need_scope('app.brand_assets', 'delete', 'manage');
call app.need_scope('app.asset_captions', 'insert', 'upload');
call app.need_scope('app.lora_training_jobs', 'insert', 'train');
call app.need_scope('app.lora_training_jobs', 'update', 'train');
call app.need_scope('app.lora_training_jobs', 'delete', 'manage');
call app.need_scope('app.job_assets', 'insert', 'train');
call app.need_scope('app.models', 'delete', 'manage');
call app.need_scope('app.generations', 'insert', 'generate');
call app.need_scope('app.generations', 'update', 'generate');
call app.need_scope('app.generated_images', 'delete', 'generate');
call app.need_scope('app.invitations', 'insert', 'manage');
call app.need_scope('app.invitations', 'update', 'manage');
call app.need_scope('storage.objects', 'insert', 'upload');
create policy scope_delete on storage.objects as restrictive for delete to authenticated using (
  case when bucket_id = 'generated-content' and split_part(name, '/', 2) <> 'samples'
    then (select private.may('generate')) else (select private.may('manage')) end);

-- Keys are made and revoked by an admin in person: no key makes keys, so none makes a wider one.
create policy scope_insert on app.api_keys as restrictive for insert to authenticated
  with check ((select private.ctx('key_id')) is null and (select private.may('manage')));
create policy scope_update on app.api_keys as restrictive for update to authenticated
  using ((select private.ctx('key_id')) is null and (select private.may('manage')))
  with check ((select private.ctx('key_id')) is null and (select private.may('manage')));
create policy reader_select on app.api_keys for select to authenticated using (
  (user_id = (select private.uid()) and ((select private.is_unlimited()) or (select private.may('manage'))))
  or (select private.is_admin()));
create policy admin_insert on app.api_keys for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.is_admin()));
create policy admin_update on app.api_keys for update to authenticated
  using (revoked_at is null and (select private.is_admin()))
  with check (revoked_at is not null);
grant select (id, brand_id, user_id, name, prefix, scopes, created_at, expires_at, last_used_at, revoked_at)
  on app.api_keys to authenticated;
grant insert (brand_id, user_id, name, hash, scopes, expires_at) on app.api_keys to authenticated;
grant update (revoked_at) on app.api_keys to authenticated;

create policy admin_select on app.invitations for select to authenticated
  using ((select private.is_admin()));
create policy admin_insert on app.invitations for insert to authenticated
  with check (user_id = (select private.uid()) and (select private.is_admin()));
create policy admin_update on app.invitations for update to authenticated
  using (revoked_at is null and accepted_at is null and (select private.is_admin()))
  with check (revoked_at is not null);
grant select (id, brand_id, user_id, email, role, created_at, expires_at, accepted_at, accepted_by, revoked_at)
  on app.invitations to authenticated;
grant insert (brand_id, user_id, email, role, hash, expires_at) on app.invitations to authenticated;
grant update (revoked_at) on app.invitations to authenticated;

reset role;
